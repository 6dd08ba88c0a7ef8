# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
#
# What the guest's scripts share: how they report, and how they find a disk.
# Sourced by busybox sh inside the guest. Knows nothing of QEMU or the host.
#
# A record is one line on the second serial port: a word that says what it is,
# then its fields. tests/guest/records.py reads them.
#
#   up RELEASE                 the guest runs this kernel
#   disk ID DEVICE BYTES       a disk was found
#   step ID N TOTAL TEXT       a part of the disk's test begins
#   pass ID NAME TEXT          a check held
#   fail ID NAME TEXT          a check did not hold
#   fio ID JOB JSON            fio's own results
#   sample ID OFFSET LENGTH SHA256   what was read there
#   stat ID FIELDS...          the guest's /sys/block/DEVICE/stat
#   done                       nothing follows; the guest awaits "off"

# parameter NAME: prints the value of NAME=value on the kernel command line
parameter() {
    tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p"
}

# open_records MODE: the shell's guest has nobody to report to
open_records() {
    if [ "$1" = shell ]; then
        exec 3>/dev/null
        return
    fi
    stty -F /dev/ttyS1 raw -echo 115200
    exec 3<>/dev/ttyS1
}

# record WORDS...: one whole line, whoever else writes at the same time
record() {
    ( flock 9; printf '%s\n' "$*" >&3 ) 9>/tmp/records.lock
}

# finish MODE: powers off once the host has read the plane's counters
finish() {
    record "done"
    if [ "$1" != shell ]; then
        # shellcheck disable=SC3045 # busybox knows -t
        read -r -t 120 _ <&3
    fi
    poweroff -f
}

# fatal TEXT: for what leaves nothing to test
fatal() {
    echo "guest: $*"
    record fail guest start "$*"
    finish test
}

# device_of ID: prints the kernel's name of the disk with that serial number
device_of() {
    for dir in /sys/block/vd*; do
        [ -e "$dir/serial" ] || continue
        if [ "$(cat "$dir/serial")" = "$1" ]; then
            basename "$dir"
            return 0
        fi
    done
    return 1
}

wanted_disks() {
    { parameter dp.read; parameter dp.full; } | tr ',' ' '
}

# Probing may end a little after the driver's insmod. 30 s is a hang guard.
settle_disks() {
    for id in $(wanted_disks); do
        tries=0
        until device_of "$id" >/dev/null; do
            tries=$((tries + 1))
            [ $tries -lt 300 ] || fatal "no disk has the serial number $id"
            usleep 100000
        done
        name=$(device_of "$id")
        record disk "$id" "$name" $(($(cat "/sys/block/$name/size") * 512))
    done
}

list_disks() {
    for id in $(wanted_disks); do
        name=$(device_of "$id")
        access=read-write
        [ "$(cat "/sys/block/$name/ro")" = 0 ] || access=read-only
        size=$(($(cat "/sys/block/$name/size") / 2048))
        echo "/dev/$name: disk $id, $size MiB, $access"
    done
}

# check ID NAME TEXT COMMAND...: runs the command and records how it went;
# what it printed appears on the console if it failed
check() {
    check_id=$1 check_name=$2 check_text=$3
    shift 3
    check_log=/tmp/$check_id.$check_name.log
    if "$@" >"$check_log" 2>&1; then
        record pass "$check_id" "$check_name" "$check_text"
        return 0
    fi
    echo "guest: $check_id: failed: $*"
    cat "$check_log"
    record fail "$check_id" "$check_name" "$check_text"
    return 1
}

# run_fio ID DEVICE JOB TEXT OPTIONS...: runs /inside/fio/JOB.fio on the disk
run_fio() {
    fio_id=$1 fio_device=$2 fio_job=$3 fio_text=$4
    fio_json=/tmp/$fio_id.$fio_job.json
    shift 4
    check "$fio_id" "$fio_job" "$fio_text" env DISK="/dev/$fio_device" \
        fio --output-format=json --output="$fio_json" "$@" \
        "/inside/fio/$fio_job.fio"
    fio_result=$?
    # fio puts its notes before the object when it finds something wrong, and
    # may print no object at all then.
    if grep -q '^{' "$fio_json"; then
        record fio "$fio_id" "$fio_job" \
            "$(sed -n '/^{/,$p' "$fio_json" | tr -d '\n')"
    fi
    return $fio_result
}

# run_queues ID DEVICE JOB OPTIONS...: a job of fio on each CPU, if the disk
# has more than one queue. Linux gives each CPU a queue of its own, if there
# are as many.
run_queues() {
    queues=$(parameter dp.queues)
    [ "$queues" -gt 1 ] || return 0
    queues_id=$1 queues_device=$2 queues_job=$3
    shift 3
    export JOBS="$queues" LAST_CPU=$((queues - 1))
    check "$queues_id" driver-queues "$queues queues used by the driver" \
        [ "$(find "/sys/block/$queues_device/mq" -mindepth 1 -maxdepth 1 |
             wc -l)" = "$queues" ]
    run_fio "$queues_id" "$queues_device" "$queues_job" \
        "$queues queues at once" "$@"
}

# record_stat ID DEVICE: the guest's own count of its requests
record_stat() {
    # shellcheck disable=SC2046 # the fields are words of the record
    record stat "$1" $(cat "/sys/block/$2/stat")
}
