#!/usr/bin/env bash
# Run a command as root in a virtual machine with cgroup v2 (with -1: v1), in the current folder.
#
#   tools/cgroup2-vm.sh [-1] [-m MB] [-t SECONDS] COMMAND...
#
# The machine is QEMU without KVM and Debian's cloud kernel: it boots in seconds, and computes 10 to
# 20 times slower than this machine. It sees this machine's files, read-only, below an overlay in
# memory. So what COMMAND writes is gone with the machine; TMPDIR is a disk of its own, whose page
# cache is page cache. Loopback is the only network. Needs Debian on x86-64, and root. Exits with
# COMMAND's status; with 124 after SECONDS (default 1800); with 125, and the reason, where no such
# machine can be had.
set -euo pipefail

memory=3000 seconds=1800 version=2
while getopts 1m:t: option; do
  case $option in
    1) version=1 ;;
    m) memory=$OPTARG ;;
    t) seconds=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
if [ $# -eq 0 ]; then
  sed -n 's/^# \{0,1\}//; 2,4p' "$0" >&2
  exit 2
fi

unavailable() {
  echo "no virtual machine can be had here: $1" >&2
  exit 125
}
[ "$(uname -sm)" = "Linux x86_64" ] || unavailable "it needs Linux on x86-64"
[ "$(id -u)" = 0 ] || unavailable "it needs root"
command -v apt-get >/dev/null || unavailable "it needs Debian's packages"

here=$PWD
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lowmem-wsgi-vm
mkdir -p "$cache"
work=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT

virtiofsd=
find_virtiofsd() {
  for virtiofsd in /usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd; do
    [ ! -x "$virtiofsd" ] || return 0
  done
  return 1
}
install() {
  apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >/dev/null 2>&1
}
missing=()
for pair in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio mkfs.ext4:e2fsprogs; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq || true
  install "${missing[@]}" || unavailable "apt-get cannot install ${missing[*]}"
fi
# Of its own since Debian 13; before, QEMU has it.
find_virtiofsd || { install virtiofsd && find_virtiofsd; } || unavailable "virtiofsd is missing"

# The kernel, and those of its modules that it needs to reach its files.
kernel=$cache/kernel
download_kernel() {
  image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -n 1)
  [ -n "$image" ] && cd "$work" && apt-get download -qq "$image" 2>/dev/null && dpkg -x ./*.deb unpacked
}
if [ ! -e "$kernel" ]; then
  (download_kernel) || unavailable "apt-get cannot download linux-image-cloud-amd64"
  mv "$work/unpacked" "$kernel"
fi
drivers=(
  virtio/virtio_ring virtio/virtio virtio/virtio_pci_modern_dev virtio/virtio_pci_legacy_dev
  virtio/virtio_pci block/virtio_blk
)
filesystems=(fuse/fuse fuse/virtiofs overlayfs/overlay)

mkdir -p "$work"/first/{bin,dev,proc,sys,host,memory,root,modules}
cp "$(command -v busybox)" "$work/first/bin/"
for module in "${drivers[@]/#/drivers/}" "${filesystems[@]/#/fs/}"; do
  cp "$kernel"/lib/modules/*/kernel/"$module".ko "$work/first/modules/"
done
{
  printf 'cd %q\nexport PATH=%q HOME=%q TMPDIR=/disk\n' "$here" "$PATH" "$HOME"
  for name in $(compgen -e | grep '^\(TESTS_\|LOWMEM_\|PYTHON\)' || true); do
    printf 'export %s=%q\n' "$name" "${!name}"
  done
  printf '%q ' "$@"
  echo
} >"$work/first/command"
modules=("${drivers[@]##*/}" "${filesystems[@]##*/}")
cat >"$work/first/init" <<INIT
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in ${modules[*]}; do insmod /modules/\$module.ko || echo "no module \$module"; done
mount -t virtiofs host /host
mount -t tmpfs tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work /root
cd /root
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/shm dev/pts disk
mount -t tmpfs tmpfs dev/shm
mount -t devpts devpts dev/pts
if [ $version = 2 ]; then
  mount -t cgroup2 none sys/fs/cgroup
  echo "+memory +cpu +pids" >sys/fs/cgroup/cgroup.subtree_control
else
  mount -t tmpfs tmpfs sys/fs/cgroup
  mkdir sys/fs/cgroup/memory sys/fs/cgroup/cpu
  mount -t cgroup -o memory none sys/fs/cgroup/memory
  mount -t cgroup -o cpu none sys/fs/cgroup/cpu
fi
mount -t ext4 /dev/vda disk
ifconfig lo 127.0.0.1 up
mkdir -p tmp/vm
cp /command tmp/vm/command
echo
echo VM-BEGINS
chroot . /bin/bash /tmp/vm/command
echo "VM-ENDS \$?"
sync
poweroff -f
INIT
chmod +x "$work/first/init"
(cd "$work/first" && find . | cpio -o -H newc 2>/dev/null | gzip -1 >"$work/initrd.gz")
truncate -s 8G "$work/disk"
mkfs.ext4 -q -F "$work/disk"

"$virtiofsd" --socket-path="$work/files" -o source=/ -o cache=always -o sandbox=chroot >"$work/files.log" 2>&1 &
server=$!
for _ in $(seq 100); do
  [ -S "$work/files" ] && break
  sleep 0.1
done
# Two lines of its output are ours: what is between them is the command's.
set +e
timeout "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" \
  -nographic -no-reboot -nic none \
  -object memory-backend-memfd,id=mem,size="${memory}M",share=on -numa node,memdev=mem \
  -chardev socket,id=files,path="$work/files" \
  -device vhost-user-fs-pci,chardev=files,tag=host \
  -drive file="$work/disk",if=virtio,format=raw,cache=unsafe \
  -kernel "$kernel"/boot/vmlinuz-* -initrd "$work/initrd.gz" \
  -append "console=ttyS0 quiet loglevel=0 panic=-1" </dev/null 2>&1 |
  stdbuf -oL tr -d '\r' | tee "$work/output" | sed -u '1,/^VM-BEGINS/d; /^VM-ENDS/,$d'
status=$(sed -n 's/^VM-ENDS //p' "$work/output" | tail -n 1)
[ -n "$status" ] || grep -q ^VM-BEGINS "$work/output" || unavailable "it does not boot"
exit "${status:-124}"
