CREATE FUNCTION public.audit_is_only_added_to() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'the audit log is only added to'; END $$;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.audit (
    id integer NOT NULL,
    at timestamp with time zone NOT NULL,
    by character varying(100) NOT NULL,
    action character varying(50) NOT NULL,
    object character varying(200) NOT NULL,
    detail json NOT NULL,
    seal character varying(64) NOT NULL
);
CREATE SEQUENCE public.audit_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.audit_id_seq OWNED BY public.audit.id;
CREATE TABLE public.deliveries (
    id bigint NOT NULL,
    output character varying(100) NOT NULL,
    inspection_id bigint NOT NULL,
    attempts integer NOT NULL,
    next timestamp with time zone NOT NULL,
    error character varying(500) NOT NULL
);
CREATE SEQUENCE public.deliveries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.deliveries_id_seq OWNED BY public.deliveries.id;
CREATE TABLE public.inspections (
    id bigint NOT NULL,
    request character varying(200) NOT NULL,
    product_id integer NOT NULL,
    version_id integer,
    source character varying(100) NOT NULL,
    serial character varying(200) COLLATE pg_catalog."C",
    meta json NOT NULL,
    received timestamp with time zone NOT NULL,
    finished timestamp with time zone NOT NULL,
    picture_id bigint,
    width integer,
    height integer,
    score double precision,
    threshold double precision,
    pixel_threshold double precision,
    p_value double precision,
    verdict character varying(20) NOT NULL,
    reason character varying(300) NOT NULL,
    told character varying(20) NOT NULL,
    regions json NOT NULL,
    brightness double precision,
    sharpness double precision,
    milliseconds double precision NOT NULL,
    label character varying(20),
    kind character varying(100),
    labelled_by character varying(100),
    labelled timestamp with time zone
);
CREATE SEQUENCE public.inspections_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.inspections_id_seq OWNED BY public.inspections.id;
CREATE TABLE public.labels (
    id integer NOT NULL,
    inspection_id bigint NOT NULL,
    label character varying(20),
    kind character varying(100),
    by character varying(100) NOT NULL,
    at timestamp with time zone NOT NULL
);
CREATE SEQUENCE public.labels_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.labels_id_seq OWNED BY public.labels.id;
CREATE TABLE public.patch_scores (
    inspection_id bigint NOT NULL,
    rows integer NOT NULL,
    columns integer NOT NULL,
    "window" json,
    "values" bytea NOT NULL
);
CREATE TABLE public.pictures (
    id bigint NOT NULL,
    digest character varying(64) NOT NULL,
    file character varying(300) NOT NULL,
    size bigint NOT NULL,
    kept timestamp with time zone NOT NULL
);
CREATE SEQUENCE public.pictures_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.pictures_id_seq OWNED BY public.pictures.id;
CREATE TABLE public.products (
    id integer NOT NULL,
    name character varying(100) NOT NULL,
    number integer,
    barcode character varying(200),
    live_id integer,
    shadow boolean NOT NULL,
    deadline double precision,
    checks json NOT NULL,
    cost_miss double precision,
    cost_reject double precision,
    created timestamp with time zone NOT NULL,
    archived timestamp with time zone
);
CREATE SEQUENCE public.products_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.products_id_seq OWNED BY public.products.id;
CREATE TABLE public.sessions (
    digest character varying(64) NOT NULL,
    user_id integer NOT NULL,
    csrf character varying(64) NOT NULL,
    created timestamp with time zone NOT NULL,
    expires timestamp with time zone NOT NULL
);
CREATE TABLE public.settings (
    name character varying(100) NOT NULL,
    value json NOT NULL
);
CREATE TABLE public.tokens (
    id integer NOT NULL,
    name character varying(100) NOT NULL,
    digest character varying(64) NOT NULL,
    scopes json NOT NULL,
    user_id integer NOT NULL,
    created timestamp with time zone NOT NULL,
    expires timestamp with time zone,
    revoked timestamp with time zone,
    last_used timestamp with time zone
);
CREATE SEQUENCE public.tokens_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.tokens_id_seq OWNED BY public.tokens.id;
CREATE TABLE public.users (
    id integer NOT NULL,
    name character varying(100) NOT NULL,
    folded character varying(200) NOT NULL,
    password character varying(300) NOT NULL,
    role character varying(20) NOT NULL,
    language character varying(10),
    created timestamp with time zone NOT NULL,
    disabled boolean NOT NULL,
    failures integer NOT NULL,
    locked_until timestamp with time zone
);
CREATE SEQUENCE public.users_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.users_id_seq OWNED BY public.users.id;
CREATE TABLE public.versions (
    id integer NOT NULL,
    product_id integer NOT NULL,
    number integer NOT NULL,
    parent_id integer,
    file character varying(300) NOT NULL,
    digest character varying(64) NOT NULL,
    made_by character varying(100) NOT NULL,
    made timestamp with time zone NOT NULL,
    how character varying(20) NOT NULL,
    note text NOT NULL,
    state character varying(20) NOT NULL,
    threshold double precision,
    promise text NOT NULL,
    facts json NOT NULL
);
CREATE SEQUENCE public.versions_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.versions_id_seq OWNED BY public.versions.id;
ALTER TABLE ONLY public.audit ALTER COLUMN id SET DEFAULT nextval('public.audit_id_seq'::regclass);
ALTER TABLE ONLY public.deliveries ALTER COLUMN id SET DEFAULT nextval('public.deliveries_id_seq'::regclass);
ALTER TABLE ONLY public.inspections ALTER COLUMN id SET DEFAULT nextval('public.inspections_id_seq'::regclass);
ALTER TABLE ONLY public.labels ALTER COLUMN id SET DEFAULT nextval('public.labels_id_seq'::regclass);
ALTER TABLE ONLY public.pictures ALTER COLUMN id SET DEFAULT nextval('public.pictures_id_seq'::regclass);
ALTER TABLE ONLY public.products ALTER COLUMN id SET DEFAULT nextval('public.products_id_seq'::regclass);
ALTER TABLE ONLY public.tokens ALTER COLUMN id SET DEFAULT nextval('public.tokens_id_seq'::regclass);
ALTER TABLE ONLY public.users ALTER COLUMN id SET DEFAULT nextval('public.users_id_seq'::regclass);
ALTER TABLE ONLY public.versions ALTER COLUMN id SET DEFAULT nextval('public.versions_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.audit VALUES (1, '2026-11-30 12:56:41.037103+00', 'ada', 'product.create', 'flange', '{"number": 7}', '3739f3a25b1d26cb8f717c46f433f490f04fe892a1ea4ee6b0dd01d7a0e24b2d');
INSERT INTO public.audit VALUES (2, '2026-11-30 12:56:41.039538+00', 'ada', 'version.live', 'flange', '{}', '2fcbcc4fc1b0718598a86a958812e1248bf6ce0a541d2caaab974bd16e82f4b4');
INSERT INTO public.inspections VALUES (1, 'r1', 1, 1, 'http', 'S-1', '{"lot": 3}', '2026-03-29 01:30:00+00', '2026-03-29 01:30:00+00', NULL, NULL, NULL, 0.5, NULL, NULL, NULL, 'reject', '', 'reject', '[]', NULL, NULL, 12.5, NULL, NULL, NULL, NULL);
INSERT INTO public.products VALUES (1, 'flange', 7, NULL, 1, false, NULL, '{}', NULL, NULL, '2026-03-29 01:30:00+00', NULL);
INSERT INTO public.settings VALUES ('x', '{"a": [1, "\u00fc"]}');
INSERT INTO public.users VALUES (1, 'ada', 'ada', '$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aGFzaA', 'admin', NULL, '2026-03-29 01:30:00+00', false, 0, NULL);
INSERT INTO public.versions VALUES (1, 1, 1, NULL, 'models/1/1.offn', '0000000000000000000000000000000000000000000000000000000000000000', 'ada', '2026-03-29 01:30:00+00', 'fit', '', 'ready', 0.25, '', '{"method": "anomalydino"}');
SELECT pg_catalog.setval('public.audit_id_seq', 2, true);
SELECT pg_catalog.setval('public.deliveries_id_seq', 1, false);
SELECT pg_catalog.setval('public.inspections_id_seq', 1, true);
SELECT pg_catalog.setval('public.labels_id_seq', 1, false);
SELECT pg_catalog.setval('public.pictures_id_seq', 1, false);
SELECT pg_catalog.setval('public.products_id_seq', 1, true);
SELECT pg_catalog.setval('public.tokens_id_seq', 1, false);
SELECT pg_catalog.setval('public.users_id_seq', 1, true);
SELECT pg_catalog.setval('public.versions_id_seq', 1, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.audit
    ADD CONSTRAINT pk_audit PRIMARY KEY (id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT pk_deliveries PRIMARY KEY (id);
ALTER TABLE ONLY public.inspections
    ADD CONSTRAINT pk_inspections PRIMARY KEY (id);
ALTER TABLE ONLY public.labels
    ADD CONSTRAINT pk_labels PRIMARY KEY (id);
ALTER TABLE ONLY public.patch_scores
    ADD CONSTRAINT pk_patch_scores PRIMARY KEY (inspection_id);
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT pk_pictures PRIMARY KEY (id);
ALTER TABLE ONLY public.products
    ADD CONSTRAINT pk_products PRIMARY KEY (id);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT pk_sessions PRIMARY KEY (digest);
ALTER TABLE ONLY public.settings
    ADD CONSTRAINT pk_settings PRIMARY KEY (name);
ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT pk_tokens PRIMARY KEY (id);
ALTER TABLE ONLY public.users
    ADD CONSTRAINT pk_users PRIMARY KEY (id);
ALTER TABLE ONLY public.versions
    ADD CONSTRAINT pk_versions PRIMARY KEY (id);
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT uq_deliveries_output_inspection_id UNIQUE (output, inspection_id);
ALTER TABLE ONLY public.inspections
    ADD CONSTRAINT uq_inspections_request UNIQUE (request);
ALTER TABLE ONLY public.pictures
    ADD CONSTRAINT uq_pictures_digest UNIQUE (digest);
ALTER TABLE ONLY public.products
    ADD CONSTRAINT uq_products_barcode UNIQUE (barcode);
ALTER TABLE ONLY public.products
    ADD CONSTRAINT uq_products_name UNIQUE (name);
ALTER TABLE ONLY public.products
    ADD CONSTRAINT uq_products_number UNIQUE (number);
ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT uq_tokens_digest UNIQUE (digest);
ALTER TABLE ONLY public.users
    ADD CONSTRAINT uq_users_folded UNIQUE (folded);
ALTER TABLE ONLY public.users
    ADD CONSTRAINT uq_users_name UNIQUE (name);
ALTER TABLE ONLY public.versions
    ADD CONSTRAINT uq_versions_product_id_number UNIQUE (product_id, number);
CREATE INDEX ix_audit_at ON public.audit USING btree (at);
CREATE INDEX ix_deliveries_output ON public.deliveries USING btree (output);
CREATE INDEX ix_inspections_known ON public.inspections USING btree (product_id, label, version_id, score, id);
CREATE INDEX ix_inspections_label ON public.inspections USING btree (label, received, id);
CREATE INDEX ix_inspections_picture ON public.inspections USING btree (picture_id);
CREATE INDEX ix_inspections_product ON public.inspections USING btree (product_id, received, id);
CREATE INDEX ix_inspections_received ON public.inspections USING btree (received, id);
CREATE INDEX ix_inspections_said ON public.inspections USING btree (product_id, label, verdict, received, id, told);
CREATE INDEX ix_inspections_score ON public.inspections USING btree (product_id, score, received, id);
CREATE INDEX ix_inspections_serial ON public.inspections USING btree (serial, received);
CREATE INDEX ix_inspections_tally ON public.inspections USING btree (received, product_id, verdict, label);
CREATE INDEX ix_inspections_verdict ON public.inspections USING btree (verdict, received, id);
CREATE INDEX ix_labels_at ON public.labels USING btree (at);
CREATE INDEX ix_labels_inspection_id ON public.labels USING btree (inspection_id);
CREATE INDEX ix_pictures_kept ON public.pictures USING btree (kept, id);
CREATE INDEX ix_sessions_user_id ON public.sessions USING btree (user_id);
CREATE TRIGGER audit_change BEFORE DELETE OR UPDATE OR TRUNCATE ON public.audit FOR EACH STATEMENT EXECUTE FUNCTION public.audit_is_only_added_to();
ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT fk_deliveries_inspection_id_inspections FOREIGN KEY (inspection_id) REFERENCES public.inspections(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.inspections
    ADD CONSTRAINT fk_inspections_picture_id_pictures FOREIGN KEY (picture_id) REFERENCES public.pictures(id);
ALTER TABLE ONLY public.inspections
    ADD CONSTRAINT fk_inspections_product_id_products FOREIGN KEY (product_id) REFERENCES public.products(id);
ALTER TABLE ONLY public.inspections
    ADD CONSTRAINT fk_inspections_version_id_versions FOREIGN KEY (version_id) REFERENCES public.versions(id);
ALTER TABLE ONLY public.labels
    ADD CONSTRAINT fk_labels_inspection_id_inspections FOREIGN KEY (inspection_id) REFERENCES public.inspections(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.patch_scores
    ADD CONSTRAINT fk_patch_scores_inspection_id_inspections FOREIGN KEY (inspection_id) REFERENCES public.inspections(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT fk_sessions_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT fk_tokens_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.versions
    ADD CONSTRAINT fk_versions_parent_id_versions FOREIGN KEY (parent_id) REFERENCES public.versions(id);
ALTER TABLE ONLY public.versions
    ADD CONSTRAINT fk_versions_product_id_products FOREIGN KEY (product_id) REFERENCES public.products(id) ON DELETE CASCADE;
