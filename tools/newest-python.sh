#!/usr/bin/env bash
# Run a command as root where Python 3.14 and 3.15 are installed, in the current folder.
#
#   tools/newest-python.sh COMMAND...     such as: tools/newest-python.sh python3.15 --version
#
# That is a chroot of Debian unstable in ~/.cache/lowmem-wsgi-python, made at the first call in half
# a minute from the package mirror of this machine. The command sees this machine's /proc, /sys (so
# also its cgroups) and /dev, and has pip's configuration. Needs Debian, root, and unshare(1). Exits
# with COMMAND's status; with 3 if the chroot cannot be made.
set -euo pipefail

root=${XDG_CACHE_HOME:-$HOME/.cache}/lowmem-wsgi-python
if [ $# -eq 0 ]; then
  sed -n 's/^# \{0,1\}//; 2,4p' "$0" >&2
  exit 2
fi

make_root() {
  # One call at a time makes it; a call that came second finds it made.
  exec 9>"$root.lock" && flock 9 || return
  [ ! -e "$root" ] || return 0
  if ! command -v mmdebstrap >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
      --option DPkg::Lock::Timeout=300 mmdebstrap; } >/dev/null || return
  fi
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
    grep -v security | head -n 1)
  [ -n "$mirror" ] || return
  # The mirror may be a snapshot, whose release file has expired. In a folder of its own until it is
  # whole: an interrupted call leaves nothing that looks finished.
  rm -rf "$root.new"
  mkdir -p "$root.new" || return
  mmdebstrap --quiet --mode=root --variant=minbase \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Sandbox::User "root"' \
    --include=python3.14-venv,python3.14-dev,python3.15-venv,python3.15-dev \
    --include=ca-certificates,gcc,libc6-dev,make,curl,procps \
    sid "$root.new" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" &&
    mv "$root.new" "$root" &&
    exec 9>&-
}

mkdir -p "$(dirname "$root")"
if [ ! -e "$root" ] && ! { [ "$(id -u)" -eq 0 ] && make_root >&2; }; then
  echo "newest-python.sh: no chroot of Debian unstable can be made here" >&2
  exit 3
fi

for file in /etc/hosts /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt \
  /etc/pip.conf "$HOME/.pip/pip.conf" "$HOME/.config/pip/pip.conf"; do
  if [ -e "$file" ]; then
    mkdir -p "$root$(dirname "$file")"
    cp -L "$file" "$root$file"
  fi
done
mkdir -p "$root$PWD"
# The mounts are in a namespace of their own, and go with the command. /opt and /srv: packages that
# pip's configuration may name.
exec unshare --mount bash -ec '
  root=$1 where=$2
  shift 2
  for folder in /proc /sys /dev /opt /srv; do
    if [ -d "$folder" ]; then
      mkdir -p "$root$folder"
      mount --rbind "$folder" "$root$folder"
    fi
  done
  mount --rbind "$where" "$root$where"
  exec chroot "$root" bash -ec "cd \"\$1\"; shift; exec \"\$@\"" - "$where" "$@"' - "$root" "$PWD" "$@"
