#!/bin/busybox sh
# First process of the guest, in the kernel's first file system: loads the modules listed in /modules.txt, puts the
# root together and goes over to it. The root is a tmpfs over RDMA's user space over the host's / (read-only), so
# what a command writes is gone with the guest. /run/rdma_vm is the host's folder for this run.
set -e
/bin/busybox --install -s /bin
trap 'poweroff -f' EXIT

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module.ko"; done </modules.txt

nine_p=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$nine_p" root /host
mount -t 9p -o "ro,cache=loose,$nine_p" layer /layer
mount -t tmpfs -o size=75% tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/layer:/host,upperdir=/memory/upper,workdir=/memory/work overlay /root

cd /root
mount --move /proc proc
mount --move /sys sys
mount --move /dev dev
mount -t tmpfs tmpfs run
mkdir -p run/rdma_vm dev/pts dev/shm
mount -t tmpfs -o size=75% tmpfs dev/shm
mount -t devpts devpts dev/pts
ln -sf /proc/self/fd dev/fd
ln -sf /proc/self/fd/0 dev/stdin
ln -sf /proc/self/fd/1 dev/stdout
ln -sf /proc/self/fd/2 dev/stderr
mount -t 9p -o "cache=none,$nine_p" run run/rdma_vm
exec switch_root /root /bin/sh /run/rdma_vm/start.sh
