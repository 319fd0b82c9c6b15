# The memory and its forecasts as a service: docs/service.md.
#
#   docker build -t gram .
#   docker run -p 8815:8815 -v $PWD/indexes:/data/indexes -v $PWD/runs:/data/runs -v $PWD/tokens:/data/tokens:ro gram load
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY memory_index memory_index
COPY forecaster forecaster
COPY cli cli
COPY datasets/sample.csv datasets/demand.csv datasets/tomorrow.csv datasets/catalog.toml datasets/
# The build without CUDA: torch of the plain index is several gigabytes larger.
RUN pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[serve]' \
    && useradd --create-home --uid 1000 gram \
    && mkdir -p /data/indexes /data/runs \
    && chown -R gram:gram /data

USER 1000:1000
WORKDIR /data
VOLUME ["/data/indexes", "/data/runs"]
EXPOSE 8815
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8815/healthz', timeout=4)"]
ENTRYPOINT ["cli", "index", "serve", "--host", "0.0.0.0", "--port", "8815", "--token-file", "/data/tokens"]
