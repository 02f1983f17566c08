# One image for both commands: `loadgen` and `metering-proxy`.
# Packages come from requirements.lock, by their hashes. The base is a tag: pin it with
# --build-arg BASE=python:3.12-slim@sha256:..., as `.ci/images` prints it.
ARG BASE=python:3.12-slim
FROM ${BASE}
WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY loadgen loadgen
COPY proxy proxy
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
COPY traces traces
ARG STATE=/home/servewatt/.local/state/servewatt
RUN useradd --create-home servewatt && mkdir -p /runs /targets /token $STATE && chmod 700 $STATE \
    && chown -R servewatt /runs /token /home/servewatt /targets
USER servewatt
CMD ["metering-proxy", "--help"]
