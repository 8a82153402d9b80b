# Goes on where init.sh ended: makes two soft-RoCE devices, rxe0 (10.9.0.1) and rxe1 (10.9.0.2), at the ends of a
# virtual cable ve0 - ve1, runs command.sh, leaves its exit code and stops the machine.
# Both ends are in one network namespace, as soft-RoCE listens in the first one only: addresses of our own must then
# be let in from the cable (accept_local), and packets really cross it, through the queues that tc puts there.
set -e
trap '/usr/bin/busybox poweroff -f' EXIT
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
run=/run/rdma_vm

/usr/bin/busybox hostname rdma-vm
ulimit -l unlimited
ip link set lo up
ip link add ve0 type veth peer name ve1
echo 1 >/proc/sys/net/ipv4/conf/all/accept_local
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
for i in 0 1; do
    ip addr add "10.9.0.$((i + 1))/24" dev "ve$i"
    ip link set "ve$i" mtu 9000 up # packets of soft-RoCE are then of 4096 bytes
    echo 0 >"/proc/sys/net/ipv4/conf/ve$i/rp_filter"
    rdma link add "rxe$i" type rxe netdev "ve$i"
done

echo "start: ready after $(cut -d ' ' -f 1 /proc/uptime) s"
code=0
/bin/sh "$run/command.sh" </dev/null >>"$run/stdout" 2>>"$run/stderr" || code=$?
echo "$code" >"$run/exit_code.new"
mv "$run/exit_code.new" "$run/exit_code"
