# Makes the project's own Python environment. Sourced by the commands beside it; they set `top` to the checkout.
#
# make_environment NAME LOCKFILE: a virtual environment in .venv-NAME with exactly what the lock file says. It is made
# again when the lock file or the Python changes, and only one process makes it at a time.

say() { printf '%s\n' "collective: $*" >&2; }

# Python 3.11 or newer: the one on PATH, Debian's, or as root installed now.
find_python() {
  usable_python && return 0
  install_packages python3 python3-venv || return 1
  usable_python && return 0
  say "Python 3.11 or newer is needed; this machine's python3 is older. Debian 12 and Ubuntu 24.04 have it."
  return 1
}

usable_python() {
  local candidate
  for candidate in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

# The Debian packages that this machine lacks: a compiler and FUSE's headers for pyfuse3, fusermount3 for the mount.
missing_packages() {
  local python=$1 missing=()
  "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
  "$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
    2>/dev/null || missing+=(python3-dev)
  command -v gcc >/dev/null 2>&1 || missing+=(gcc libc6-dev)
  command -v pkg-config >/dev/null 2>&1 || missing+=(pkg-config)
  { command -v pkg-config >/dev/null 2>&1 && pkg-config --exists fuse3; } || missing+=(libfuse3-dev)
  command -v fusermount3 >/dev/null 2>&1 || missing+=(fuse3)
  if [ "${#missing[@]}" -gt 0 ]; then printf '%s ' "${missing[@]}"; fi
}

install_packages() { # names of Debian packages
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    say "this machine lacks: $*"
    say "install it with this line, then run the command again:"
    say "    sudo apt-get install -y $*"
    return 1
  fi
  say "installing Debian packages: $*"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"; } >/dev/null ||
    { say "apt-get could not install: $*"; return 1; }
}

make_environment() {
  local name=$1 lock=$2 python stamp wanted missing
  venv="$top/.venv-$name"
  stamp="$venv/made-from"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cksum <"$top/$lock")" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    return 0
  fi
  wanted=$(cksum <"$top/$lock")
  python=$(find_python) || return 1
  exec 9>"$top/.venv-$name.lock"
  flock 9
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exec 9>&-
    return 0
  fi
  missing=$(missing_packages "$python")
  # shellcheck disable=SC2086  # a list of names
  if [ -n "$missing" ]; then install_packages $missing || return 1; fi
  say "making the environment ${venv#"$top"/} from $lock with $("$python" --version) (once; about a minute)"
  rm -rf "$venv"
  "$python" -m venv "$venv" || return 1
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$top/$lock" || {
    say "the packages of $lock could not be installed; the lines above say why"
    return 1
  }
  printf '%s\n' "$wanted" >"$stamp"
  exec 9>&-
  say "the environment is ready"
}
