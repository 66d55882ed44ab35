# The two commands a newcomer needs are `make demo` and `make test`; both do all the set-up. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo down test check format bench bench-ablation bench-curve bench-demo bench-cluster bench-gpu bench-operator bench-training crds dashboards helm-values lock clean control-plane control-plane-down contract cluster-up cluster-down cluster-test triton litert bench-serving operator-killed kueue metrics-server upgrade-test

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export BELVEDERE_CACHE ?= $(HOME)/.cache/belvedere
PYTEST_ARGS ?=
# Dozens of short-lived processes import the same modules; compiling them anew each time doubles what a start costs.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'

setup: ## virtual environment, Prometheus, Alertmanager (cached in ~/.cache/belvedere)
	@deploy/setup/setup.sh

litert: setup ## the converter for engines of runtime litert, in an environment of its own in the cache
	@deploy/setup/litert.sh

triton: setup ## the real Triton server from PyPI, in an environment of its own in the cache (about 600 MB; x86-64 Debian)
	@deploy/setup/triton.sh

demo: setup $(if $(filter triton,$(BACKEND)),triton) ## the whole loop on real pictures: data, train, compile, serve, roll out, revert, scale, report (QUICK=1, KEEP=1, CHAOS=1, BACKEND=triton)
	@python deploy/demo $(if $(BACKEND),--backend $(BACKEND)) $(if $(QUICK),--quick) $(if $(KEEP),--keep) $(if $(CHAOS),--chaos)

down: ## stop what `make demo KEEP=1` left running
	@belvedere down --home build/demo/home

test: ## every test that this machine can run; ends with a table of what ran and what was skipped
	@deploy/setup/setup.sh --with-helm
	@deploy/setup/triton.sh || echo "Triton cannot be set up here: its tests will be skipped" >&2
	@deploy/benchmarks/peers.sh || echo "KServe's clients or perf_analyzer cannot be set up here: their tests will be skipped" >&2
	@python -m pytest $(PYTEST_ARGS)

check: ## ruff, mypy, import contracts, generated files, helm lint, promtool, hadolint
	@deploy/setup/setup.sh --with-helm
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	python -m belvedere_platform.resources.crd --check helm/belvedere/files/crds
	helm lint --strict helm/belvedere --values helm/belvedere/ci/default-values.yaml
	python deploy/setup/helm_values.py --check
	python deploy/images/check_images.py
	python -m belvedere_platform.telemetry.dashboards --check helm/belvedere/files/dashboards
	promtool check rules helm/belvedere/files/rules/*.yaml
	python -m belvedere_operators.alerts.check

crds: ## write the CRDs from the resource models
	python -m belvedere_platform.resources.crd --write helm/belvedere/files/crds

dashboards: ## write the Grafana dashboards from the PromQL of the gateway's metrics
	python -m belvedere_platform.telemetry.dashboards --write helm/belvedere/files/dashboards

helm-values: ## write the table of the chart's values
	python deploy/setup/helm_values.py --write

format: ## format the code
	ruff format . && ruff check --fix .

bench: bench-demo bench-operator bench-training bench-serving bench-cluster ## every benchmark

bench-cluster: ## faults under a service on a cluster, a bare node or BELVEDERE_TEST_KUBECONFIG's: build/bench/cluster.json
	@deploy/setup/setup.sh --with-helm
	@python deploy/benchmarks/cluster_bench.py --output build/bench/cluster.json $(BENCH_ARGS)

bench-training: setup ## the model and its training: step beside OpenCLIP's, parts, explanation, loader, kills, compression: build/bench/training.json (BENCH_ARGS)
	@python deploy/benchmarks/training_bench.py --output build/bench/training.json $(BENCH_ARGS)

bench-ablation: setup ## what each choice of the recipe buys, over three seeds: build/bench/ablation.json (BENCH_ARGS)
	@python deploy/benchmarks/ablation_bench.py --output build/bench/ablation.json $(BENCH_ARGS)

bench-gpu: setup ## on a machine with an NVIDIA GPU: the training step beside OpenCLIP's and TensorRT's engines beside torch there: build/bench/gpu.json (BENCH_ARGS)
	@python deploy/benchmarks/gpu_bench.py --output build/bench/gpu.json $(BENCH_ARGS)

bench-curve: setup ## recall against multiply-adds for every size and recipe, CURVE_SECONDS of processor time each (120): build/bench/curve.json, .html, .png (BENCH_ARGS)
	@python deploy/benchmarks/curve_bench.py --output build/bench/curve.json $(if $(CURVE_SECONDS),--seconds $(CURVE_SECONDS)) $(BENCH_ARGS)

bench-demo: setup ## the demo at full budget, measured: build/bench/demo.json
	@python deploy/demo --chaos --bench build/bench/demo.json

bench-operator: setup ## 1,000 ModelServices and 1,000 TrainingRuns on a real API server (OBJECTS=N), whole or in parts (PARTS=services,runs,restart,peer,tests): build/bench/operator.json
	@deploy/cluster/build.sh && kwok=$$(deploy/benchmarks/kwok.sh) && python deploy/benchmarks/operator_bench.py --kwok $$kwok --objects $(or $(OBJECTS),1000) $(if $(PARTS),--only $(PARTS)) --output build/bench/operator.json

bench-serving: triton ## engines beside torch, our server beside KServe, FastAPI and Triton, overload, malformed requests: build/bench/serving.json
	@deploy/setup/litert.sh || echo "LiteRT's converter cannot be set up here: its rows will be empty" >&2
	@deploy/benchmarks/peers.sh || echo "The peers cannot be set up here: their rows will be empty" >&2
	@python deploy/benchmarks/serving_bench.py --output build/bench/serving.json $(BENCH_ARGS)

operator-killed: setup ## an operator killed every 5 s and cut off in between, for 5 minutes (KILL_SECONDS=N): it ends in the same state, object by object
	@deploy/cluster/build.sh && BELVEDERE_KILL_SECONDS=$(or $(KILL_SECONDS),300) python -m pytest tests/components/test_operator_killed.py $(PYTEST_ARGS)

kueue: setup ## Kueue's controller, for the test of queues (built once, then cached)
	@deploy/cluster/build.sh && deploy/cluster/kueue.sh

upgrade-test: setup ## an older state of this repository (FROM=git ref; else the last release) becomes this one under load: no pod restarted, no request failed
	@deploy/cluster/build.sh && older=$$(deploy/setup/older.sh $(FROM)) && BELVEDERE_UPGRADE_FROM=$$older python -m pytest -s tests/components/test_gateway/test_upgrade_from_older.py $(PYTEST_ARGS)

metrics-server: setup ## what HorizontalPodAutoscalers ask for the use of pods, for the test of one (built once, then cached)
	@deploy/cluster/metrics_server.sh

control-plane: setup ## a real Kubernetes API server on loopback (built once, then cached); prints its kubeconfig
	@deploy/cluster/build.sh && python deploy/cluster/control_plane.py up

control-plane-down: ## end what `make control-plane` started, whatever became of it
	@python deploy/cluster/control_plane.py down

contract: setup ## the store's contract on the embedded store and, where it is built, on a real API server
	@python -m pytest tests/contract tests/components/test_control_plane_store.py tests/components/test_control_plane_kubectl.py $(PYTEST_ARGS)

cluster-up: ## a Kubernetes with KubeRay and Prometheus: by kind where Docker runs, else a bare node (root); prints its kubeconfig
	@deploy/setup/setup.sh --with-helm
	@deploy/cluster/cluster.sh up

cluster-down: ## end and remove what `make cluster-up` started, whatever became of it
	@deploy/cluster/cluster.sh down

cluster-test: ## the tests on a cluster: BELVEDERE_TEST_KUBECONFIG's, else kind's, else a bare node for this run (SHORT=1); whole, it writes what bench-cluster does
	@deploy/setup/setup.sh --with-helm
	@$(if $(SHORT),true,deploy/setup/triton.sh || echo "Triton cannot be set up here: its test will be skipped" >&2)
	@$(if $(SHORT),true,deploy/cluster/metrics_server.sh >/dev/null || echo "metrics-server cannot be built here: its test will be skipped" >&2)
	@$(if $(SHORT)$(PYTEST_ARGS),deploy/cluster/cluster.sh $(if $(SHORT),short,test) $(PYTEST_ARGS),python deploy/benchmarks/cluster_bench.py --output build/bench/cluster.json --whole)

lock: setup ## pin the requirements anew
	$(BELVEDERE_CACHE)/tools/uv/bin/uv pip compile -q --universal --python-version 3.11 --all-extras --generate-hashes --no-header --no-annotate pyproject.toml -o requirements/lock.txt
	deploy/images/lock.sh

clean: ## remove build products (not the cache)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
