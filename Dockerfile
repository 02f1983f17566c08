# One image for both commands: `loadgen` and `metering-proxy`.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY loadgen loadgen
COPY proxy proxy
RUN pip install --no-cache-dir .
COPY traces traces
RUN useradd --create-home servewatt && mkdir /runs /token \
    && chown servewatt /runs /token
USER servewatt
CMD ["metering-proxy", "--help"]
