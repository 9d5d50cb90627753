# The other scripts source this file from the root of the checkout. It finds or installs uv and makes the environments.
# It writes nothing outside the checkout's .acp folder.

ACP_HOME=${ACP_HOME:-$PWD/.acp}
export UV_CACHE_DIR=${UV_CACHE_DIR:-$ACP_HOME/cache/uv}
export UV_PYTHON_INSTALL_DIR=${UV_PYTHON_INSTALL_DIR:-$ACP_HOME/python}
export UV_NO_PROGRESS=${UV_NO_PROGRESS:-$([ -t 2 ] || echo 1)}
[ -n "$UV_NO_PROGRESS" ] || unset UV_NO_PROGRESS
# Variables that the user set for another Python, environment or shell must not affect ours.
unset UV PYTHON313 VIRTUAL_ENV CONDA_PREFIX
for name in "${!PYTHON@}"; do
  case $name in
    PYTHONIOENCODING | PYTHONUTF8 | PYTHONUNBUFFERED | PYTHONFAULTHANDLER | PYTHONASYNCIODEBUG | PYTHONDEVMODE) ;;
    PYTHONDONTWRITEBYTECODE | PYTHONPYCACHEPREFIX | PYTHONTRACEMALLOC | PYTHONHASHSEED) ;;
    *) unset "$name" ;;
  esac
done
# Only those of uv's settings count that say where packages and interpreters come from, and how they are fetched and kept.
for name in "${!UV_@}"; do
  case $name in
    UV_*INDEX* | UV_FIND_LINKS | UV_KEYRING_PROVIDER | UV_OFFLINE | UV_CONFIG_FILE | UV_NO_CONFIG) ;;
    UV_*CERTS | UV_NATIVE_TLS | UV_INSECURE_HOST | UV_*TIMEOUT | UV_HTTP_* | UV_CONCURRENT_* | UV_*TOKEN) ;;
    UV_CACHE_DIR | UV_NO_CACHE | UV_LINK_MODE | UV_NO_PROGRESS | UV_PYTHON_INSTALL_* | UV_PYTHON_DOWNLOADS*) ;;
    *) unset "$name" ;;
  esac
done
# The same applies to pip's settings; SAM uses pip to build layers.
for name in "${!PIP_@}"; do
  case $name in
    PIP_*INDEX* | PIP_FIND_LINKS | PIP_TRUSTED_HOST | PIP_KEYRING_PROVIDER | PIP_CONFIG_FILE) ;;
    PIP_CERT | PIP_CLIENT_CERT | PIP_PROXY | PIP_*TIMEOUT | PIP_RETRIES | PIP_USE_FEATURE) ;;
    PIP_CACHE_DIR | PIP_NO_CACHE_DIR | PIP_DISABLE_PIP_VERSION_CHECK) ;;
    *) unset "$name" ;;
  esac
done
unset name

say() { printf '%s\n' "$*" >&2; }

# Sets UV to a uv that works: the user's own, or one installed below .acp.
find_uv() {
  local candidate python found=
  for candidate in "$ACP_HOME/uv/bin/uv" uv "${HOME:-}/.local/bin/uv"; do
    # A pyenv shim may be found and not run, so it is tried.
    if "$candidate" --version >/dev/null 2>&1; then
      UV=$candidate
      return
    fi
  done
  for python in python3.13 python3 python3.14 python3.12 python3.11 python3.10 python3.9 /usr/bin/python3 \
    "${HOME:-}"/.pyenv/versions/3.*/bin/python3; do
    "$python" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 || continue
    found=$python
    say "Installing uv into .acp/uv ..."
    if "$python" -I scripts/lib/install_uv.py "$ACP_HOME/uv" requirements/uv.txt >&2 &&
      "$ACP_HOME/uv/bin/uv" --version >/dev/null; then
      UV=$ACP_HOME/uv/bin/uv
      return
    fi
    rm -rf "$ACP_HOME/uv"
  done
  if [ -n "$found" ]; then
    say "uv could not be installed: what pip said is above. Is a package index reachable?"
    say "Or install uv yourself (https://docs.astral.sh/uv/), then run this again."
    exit 69
  fi
  say "No uv, and no Python 3.8 or later with venv and pip to install it with."
  say "Install Python 3.13 (https://www.python.org/downloads/) or uv (https://docs.astral.sh/uv/), then run this again."
  exit 69
}

# Sets PYTHON313 to an interpreter of 3.13; uv downloads one where none is installed.
find_python() {
  local candidate
  for candidate in python3.13 "${HOME:-}"/.pyenv/versions/3.13*/bin/python3.13; do
    if PYTHON313=$("$candidate" -c 'import sys; assert sys.version_info[:2] == (3, 13); print(sys.executable)' 2>/dev/null); then
      return
    fi
  done
  PYTHON313=$("$UV" python find 3.13 2>/dev/null) && return
  say "Installing Python 3.13 into .acp/python ..."
  if "$UV" python install 3.13 >&2 && PYTHON313=$("$UV" python find 3.13); then
    return
  fi
  say "Python 3.13 was neither found nor could it be downloaded. Install it (pyenv install 3.13, or python.org), then run this again."
  exit 69
}

# environment <name> <lock>: makes or updates .acp/venvs/<name> from the lock; does nothing where it is up to date.
environment() {
  local name=$1 lock=$2 venv=$ACP_HOME/venvs/$1 stamp
  # The stamp includes the folder, because a checkout that was moved needs its paths written again.
  stamp="$(cksum <"$lock") $PWD"
  if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.lock-checksum" 2>/dev/null)" = "$stamp" ] &&
    "$venv/bin/python" -c '' 2>/dev/null; then
    return
  fi
  [ -n "${UV:-}" ] || find_uv
  [ -n "${PYTHON313:-}" ] || find_python
  say "Preparing the $name environment ..."
  # Console scripts name their interpreter by its path: after a move they are of no use.
  case $(cat "$venv/.lock-checksum" 2>/dev/null) in
    "" | *" $PWD") ;;
    *) rm -rf "$venv" ;;
  esac
  rm -f "$venv/.lock-checksum"
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -rf "$venv"
    "$UV" venv --quiet --python "$PYTHON313" "$venv" >&2
  fi
  "$UV" pip sync --quiet --require-hashes --python "$venv/bin/python" "$lock" >&2 || {
    say "Installing $lock failed. Is a package index reachable?"
    exit 69
  }
  # The project's own packages are folders on the path, so an edit needs no new installation.
  if [ "$name" = dev ]; then
    printf '%s\n' "$PWD/layers/core" "$PWD/scripts" "$PWD/scripts/market" "$PWD/scripts/localstack" \
      >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/control_plane.pth"
  fi
  printf '%s\n' "$stamp" >"$venv/.lock-checksum"
}
