# Training, and building engines. CUDA's libraries come with PyTorch's package; the node brings the driver. Two targets:
# docker build -f deploy/images/trainer.Dockerfile --target cuda -t belvedere-trainer:dev .        (about 6 GB)
# docker build -f deploy/images/trainer.Dockerfile --target cpu -t belvedere-trainer:dev-cpu .     (about 2 GB)
ARG PYTHON=3.11.13-slim-bookworm

FROM docker.io/library/python:${PYTHON} AS build
ARG UV=0.13.9
RUN pip install --no-cache-dir uv==${UV}
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
WORKDIR /source
RUN uv venv /opt/belvedere

FROM build AS build-cuda
COPY requirements/images/trainer-cuda.txt requirements.txt
RUN uv pip install --python /opt/belvedere --require-hashes --no-deps -r requirements.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY platform platform
COPY operators operators
COPY serving serving
COPY training training
RUN uv pip install --python /opt/belvedere --no-deps .

FROM build AS build-cpu
ARG TORCH=2.15.0
COPY requirements/images/trainer-cpu.txt requirements.txt
# torch comes from PyTorch's own index, which has builds without CUDA.
RUN uv pip install --python /opt/belvedere --require-hashes --no-deps -r requirements.txt \
  && uv pip install --python /opt/belvedere --no-deps --torch-backend cpu torch==${TORCH}
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY platform platform
COPY operators operators
COPY serving serving
COPY training training
RUN uv pip install --python /opt/belvedere --no-deps .

FROM docker.io/library/python:${PYTHON} AS base
RUN useradd --uid 65532 --user-group --no-create-home --home-dir /tmp belvedere
ENV PATH=/opt/belvedere/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 65532:65532
CMD ["belvedere", "--help"]

FROM base AS cpu
COPY --from=build-cpu /opt/belvedere /opt/belvedere

FROM base AS cuda
COPY --from=build-cuda /opt/belvedere /opt/belvedere
