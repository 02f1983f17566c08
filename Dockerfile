# One image for both commands: `loadgen` and `metering-proxy`.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY loadgen loadgen
COPY proxy proxy
RUN pip install --no-cache-dir .
COPY traces traces
RUN useradd --create-home servewatt && mkdir /runs && chown servewatt /runs
USER servewatt
CMD ["metering-proxy", "--help"]
