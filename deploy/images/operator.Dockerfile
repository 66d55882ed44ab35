# The operator: controllers, alert webhook. No torch, no Ray.
# docker build -f deploy/images/operator.Dockerfile -t belvedere-operator:dev .      (or: buildah build, with the same arguments)
ARG PYTHON=3.11.13-slim-bookworm

FROM docker.io/library/python:${PYTHON} AS build
ARG UV=0.13.9
RUN pip install --no-cache-dir uv==${UV}
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
WORKDIR /source
# What changes seldom comes first: a change of Belvedere alone installs Belvedere alone.
COPY requirements/images/operator.txt requirements.txt
RUN uv venv /opt/belvedere && uv pip install --python /opt/belvedere --require-hashes --no-deps -r requirements.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY platform platform
COPY operators operators
COPY serving serving
COPY training training
RUN uv pip install --python /opt/belvedere --no-deps .
# Engines are built in other images, so the operator is told with what: a new version there builds anew.
COPY requirements/lock.txt lock.txt
COPY deploy/images/toolchain.py toolchain.py
RUN python toolchain.py lock.txt > /opt/belvedere/toolchain.json

FROM docker.io/library/python:${PYTHON}
RUN useradd --uid 65532 --user-group --no-create-home --home-dir /tmp belvedere
COPY --from=build /opt/belvedere /opt/belvedere
ENV PATH=/opt/belvedere/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp BELVEDERE_TOOLCHAIN=/opt/belvedere/toolchain.json
USER 65532:65532
CMD ["belvedere", "--help"]
