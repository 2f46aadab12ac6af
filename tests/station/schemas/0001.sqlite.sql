BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	"by" VARCHAR(100) NOT NULL, 
	action VARCHAR(50) NOT NULL, 
	object VARCHAR(200) NOT NULL, 
	detail JSON NOT NULL, 
	seal VARCHAR(64) NOT NULL, 
	CONSTRAINT pk_audit PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,'2026-11-30 12:56:39.610690','ada','product.create','flange','{"number": 7}','169d1afa68ed4b6fa9c1e0725d56f24b3936c0eeec5e16bf045e92816595622e');
INSERT INTO "audit" VALUES(2,'2026-11-30 12:56:39.613661','ada','version.live','flange','{}','29098f7a055a76d61636ee679c25e4e2ace9cf6178923b079790de08463bf98b');
CREATE TABLE deliveries (
	id INTEGER NOT NULL, 
	output VARCHAR(100) NOT NULL, 
	inspection_id INTEGER NOT NULL, 
	attempts INTEGER NOT NULL, 
	next DATETIME NOT NULL, 
	error VARCHAR(500) NOT NULL, 
	CONSTRAINT pk_deliveries PRIMARY KEY (id), 
	CONSTRAINT fk_deliveries_inspection_id_inspections FOREIGN KEY(inspection_id) REFERENCES inspections (id) ON DELETE CASCADE, 
	CONSTRAINT uq_deliveries_output_inspection_id UNIQUE (output, inspection_id)
);
CREATE TABLE inspections (
	id INTEGER NOT NULL, 
	request VARCHAR(200) NOT NULL, 
	product_id INTEGER NOT NULL, 
	version_id INTEGER, 
	source VARCHAR(100) NOT NULL, 
	serial VARCHAR(200), 
	meta JSON NOT NULL, 
	received DATETIME NOT NULL, 
	finished DATETIME NOT NULL, 
	picture_id INTEGER, 
	width INTEGER, 
	height INTEGER, 
	score DOUBLE, 
	threshold DOUBLE, 
	pixel_threshold DOUBLE, 
	p_value DOUBLE, 
	verdict VARCHAR(20) NOT NULL, 
	reason VARCHAR(300) NOT NULL, 
	told VARCHAR(20) NOT NULL, 
	regions JSON NOT NULL, 
	brightness DOUBLE, 
	sharpness DOUBLE, 
	milliseconds DOUBLE NOT NULL, 
	label VARCHAR(20), 
	kind VARCHAR(100), 
	labelled_by VARCHAR(100), 
	labelled DATETIME, 
	CONSTRAINT pk_inspections PRIMARY KEY (id), 
	CONSTRAINT fk_inspections_picture_id_pictures FOREIGN KEY(picture_id) REFERENCES pictures (id), 
	CONSTRAINT fk_inspections_product_id_products FOREIGN KEY(product_id) REFERENCES products (id), 
	CONSTRAINT fk_inspections_version_id_versions FOREIGN KEY(version_id) REFERENCES versions (id), 
	CONSTRAINT uq_inspections_request UNIQUE (request)
);
INSERT INTO "inspections" VALUES(1,'r1',1,1,'http','S-1','{"lot": 3}','2026-03-29 01:30:00.000000','2026-03-29 01:30:00.000000',NULL,NULL,NULL,0.5,NULL,NULL,NULL,'reject','','reject','[]',NULL,NULL,12.5,NULL,NULL,NULL,NULL);
CREATE TABLE labels (
	id INTEGER NOT NULL, 
	inspection_id INTEGER NOT NULL, 
	label VARCHAR(20), 
	kind VARCHAR(100), 
	"by" VARCHAR(100) NOT NULL, 
	at DATETIME NOT NULL, 
	CONSTRAINT pk_labels PRIMARY KEY (id), 
	CONSTRAINT fk_labels_inspection_id_inspections FOREIGN KEY(inspection_id) REFERENCES inspections (id) ON DELETE CASCADE
);
CREATE TABLE patch_scores (
	inspection_id INTEGER NOT NULL, 
	rows INTEGER NOT NULL, 
	columns INTEGER NOT NULL, 
	window JSON, 
	"values" BLOB NOT NULL, 
	CONSTRAINT pk_patch_scores PRIMARY KEY (inspection_id), 
	CONSTRAINT fk_patch_scores_inspection_id_inspections FOREIGN KEY(inspection_id) REFERENCES inspections (id) ON DELETE CASCADE
);
CREATE TABLE pictures (
	id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	file VARCHAR(300) NOT NULL, 
	size BIGINT NOT NULL, 
	kept DATETIME NOT NULL, 
	CONSTRAINT pk_pictures PRIMARY KEY (id), 
	CONSTRAINT uq_pictures_digest UNIQUE (digest)
);
CREATE TABLE products (
	id INTEGER NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	number INTEGER, 
	barcode VARCHAR(200), 
	live_id INTEGER, 
	shadow BOOLEAN NOT NULL, 
	deadline DOUBLE, 
	checks JSON NOT NULL, 
	cost_miss DOUBLE, 
	cost_reject DOUBLE, 
	created DATETIME NOT NULL, 
	archived DATETIME, 
	CONSTRAINT pk_products PRIMARY KEY (id), 
	CONSTRAINT uq_products_barcode UNIQUE (barcode), 
	CONSTRAINT uq_products_name UNIQUE (name), 
	CONSTRAINT uq_products_number UNIQUE (number)
);
INSERT INTO "products" VALUES(1,'flange',7,NULL,1,0,NULL,'{}',NULL,NULL,'2026-03-29 01:30:00.000000',NULL);
CREATE TABLE sessions (
	digest VARCHAR(64) NOT NULL, 
	user_id INTEGER NOT NULL, 
	csrf VARCHAR(64) NOT NULL, 
	created DATETIME NOT NULL, 
	expires DATETIME NOT NULL, 
	CONSTRAINT pk_sessions PRIMARY KEY (digest), 
	CONSTRAINT fk_sessions_user_id_users FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE TABLE settings (
	name VARCHAR(100) NOT NULL, 
	value JSON NOT NULL, 
	CONSTRAINT pk_settings PRIMARY KEY (name)
);
INSERT INTO "settings" VALUES('x','{"a": [1, "\u00fc"]}');
CREATE TABLE tokens (
	id INTEGER NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	scopes JSON NOT NULL, 
	user_id INTEGER NOT NULL, 
	created DATETIME NOT NULL, 
	expires DATETIME, 
	revoked DATETIME, 
	last_used DATETIME, 
	CONSTRAINT pk_tokens PRIMARY KEY (id), 
	CONSTRAINT fk_tokens_user_id_users FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE, 
	CONSTRAINT uq_tokens_digest UNIQUE (digest)
);
CREATE TABLE users (
	id INTEGER NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	folded VARCHAR(200) NOT NULL, 
	password VARCHAR(300) NOT NULL, 
	role VARCHAR(20) NOT NULL, 
	language VARCHAR(10), 
	created DATETIME NOT NULL, 
	disabled BOOLEAN NOT NULL, 
	failures INTEGER NOT NULL, 
	locked_until DATETIME, 
	CONSTRAINT pk_users PRIMARY KEY (id), 
	CONSTRAINT uq_users_folded UNIQUE (folded), 
	CONSTRAINT uq_users_name UNIQUE (name)
);
INSERT INTO "users" VALUES(1,'ada','ada','$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$aGFzaA','admin',NULL,'2026-03-29 01:30:00.000000',0,0,NULL);
CREATE TABLE versions (
	id INTEGER NOT NULL, 
	product_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	parent_id INTEGER, 
	file VARCHAR(300) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	made_by VARCHAR(100) NOT NULL, 
	made DATETIME NOT NULL, 
	how VARCHAR(20) NOT NULL, 
	note TEXT NOT NULL, 
	state VARCHAR(20) NOT NULL, 
	threshold DOUBLE, 
	promise TEXT NOT NULL, 
	facts JSON NOT NULL, 
	CONSTRAINT pk_versions PRIMARY KEY (id), 
	CONSTRAINT fk_versions_parent_id_versions FOREIGN KEY(parent_id) REFERENCES versions (id), 
	CONSTRAINT fk_versions_product_id_products FOREIGN KEY(product_id) REFERENCES products (id) ON DELETE CASCADE, 
	CONSTRAINT uq_versions_product_id_number UNIQUE (product_id, number)
);
INSERT INTO "versions" VALUES(1,1,1,NULL,'models/1/1.offn','0000000000000000000000000000000000000000000000000000000000000000','ada','2026-03-29 01:30:00.000000','fit','','ready',0.25,'','{"method": "anomalydino"}');
CREATE INDEX ix_audit_at ON audit (at);
CREATE INDEX ix_pictures_kept ON pictures (kept, id);
CREATE INDEX ix_sessions_user_id ON sessions (user_id);
CREATE INDEX ix_inspections_known ON inspections (product_id, label, version_id, score, id);
CREATE INDEX ix_inspections_label ON inspections (label, received, id);
CREATE INDEX ix_inspections_picture ON inspections (picture_id);
CREATE INDEX ix_inspections_product ON inspections (product_id, received, id);
CREATE INDEX ix_inspections_received ON inspections (received, id);
CREATE INDEX ix_inspections_said ON inspections (product_id, label, verdict, received, id, told);
CREATE INDEX ix_inspections_score ON inspections (product_id, score, received, id);
CREATE INDEX ix_inspections_serial ON inspections (serial, received);
CREATE INDEX ix_inspections_tally ON inspections (received, product_id, verdict, label);
CREATE INDEX ix_inspections_verdict ON inspections (verdict, received, id);
CREATE INDEX ix_deliveries_output ON deliveries (output);
CREATE INDEX ix_labels_at ON labels (at);
CREATE INDEX ix_labels_inspection_id ON labels (inspection_id);
CREATE TRIGGER audit_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE TRIGGER audit_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE TRIGGER audit_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
COMMIT;
