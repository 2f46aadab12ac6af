# The command line, for the CPU: docker build -t offnominal . (docs/install.md)
FROM python:3.12-slim AS build
# An index of torch's wheels for the CPU alone; without it the image has those for CUDA.
ARG TORCH_INDEX=
# Nothing here (--build-arg EXTRAS=) gives the small image, for models that were exported.
ARG EXTRAS=fit,openvino,benchmark
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m venv /opt/offnominal \
    && if [ -n "$TORCH_INDEX" ] && [ -n "$EXTRAS" ]; then \
        /opt/offnominal/bin/python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" \
            --constraint constraints.txt torch torchvision; \
    fi \
    && /opt/offnominal/bin/python -m pip install --no-cache-dir --constraint constraints.txt \
        ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.12-slim
COPY --from=build /opt/offnominal /opt/offnominal
# Caches lie where any user may write, since the folder's owner may run it: --user "$(id -u)".
ENV PATH=/opt/offnominal/bin:$PATH \
    HOME=/home/inspector
RUN useradd --create-home --uid 1000 inspector && chmod 1777 /home/inspector && mkdir /data \
    && chown inspector /data
USER inspector
WORKDIR /data
ENTRYPOINT ["offnominal"]
CMD ["--help"]
