/*
 * Kicks and interrupts between a vCPU in KVM and the data plane
 *
 * That they take the way through the kernel, which ioeventfd and irqfd are, and
 * not through QEMU's main loop: what QEMU writes to the APIC and to the
 * device's ports for a guest shows in a trace, and there must be nothing.  The
 * tests of notifications and of the life cycle run on KVM as well, with
 * DP_ACCEL=kvm in the environment.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "virtio-blk-dataplane-common.h"

#define ROUNDS 20
#define OK VIRTIO_BLK_S_OK

/* What makes the vCPU take an interrupt without a device, see dp_kvm_kick() */
#define APIC "name 'kvm-apic-msi'"
#define PORTS "name 'virtio-pci'"

static unsigned count_lines(const char *what)
{
    g_autofree char *path = dp_tmp("trace.log");
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    unsigned n = 0;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    lines = g_strsplit(text, "\n", 0);
    for (unsigned i = 0; lines[i]; i++) {
        n += strstr(lines[i], "memory_region_ops_write") &&
             strstr(lines[i], what);
    }
    return n;
}

static DpVm *vm_traced(const char *props)
{
    g_autofree char *log = dp_tmp("trace.log");
    DpVm *vm;

    vm = dp_vm_start("-blockdev null-co,node-name=n0,size=67108864 "
                     "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s "
                     "-trace memory_region_ops_write -D %s",
                     DP_SLOT, props, log);
    g_assert_true(vm->kvm);
    return vm;
}

typedef struct Writes {
    unsigned apic;              /* but for one for each kick */
    unsigned ports;
    int64_t sent;
    int64_t kicks;
} Writes;

static void run_rounds(DpVm *vm, DpDisk *disk, Writes *writes)
{
    unsigned apic = count_lines(APIC), ports = count_lines(PORTS);
    uint64_t kicks = disk->kicks, irqs = disk->irqs;
    DpInfo before, after;

    dp_info(vm, "d0", &before);
    for (unsigned i = 0; i < ROUNDS; i++) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, i, DP_SECTOR);

        g_assert_cmpint(dp_run(disk, req), ==, OK);
        dp_req_free(disk, req);
    }
    dp_info(vm, "d0", &after);
    kicks = disk->kicks - kicks;
    irqs = disk->irqs - irqs;
    g_assert_cmpuint(irqs, >=, ROUNDS);
    /* A device that polls at the moment needs none. */
    g_assert_cmpuint(kicks, >, 0);
    writes->apic = count_lines(APIC) - apic - kicks;
    writes->ports = count_lines(PORTS) - ports;
    writes->sent = after.sent - before.sent;
    writes->kicks = after.kicks - before.kicks;
}

/* covers: U1, NOTIF-8: the plane's kicks and interrupts pass QEMU by */
static void test_in_kernel(const void *opaque)
{
    const DpMode *mode = opaque;
    DpVm *vm = vm_traced(mode->props);
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Writes writes;

    dp_assert_mode(vm, mode);
    run_rounds(vm, disk, &writes);
    g_assert_cmpuint(writes.apic, ==, 0);
    g_assert_cmpuint(writes.ports, ==, 0);
    g_assert_cmpint(writes.sent, >=, ROUNDS);
    g_assert_cmpint(writes.kicks, >, 0);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* What the test above would see if they did not: QEMU sees each of them. */
static void test_not_in_kernel(const void *opaque)
{
    DpVm *vm = vm_traced(",ioeventfd=off");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    Writes writes;

    run_rounds(vm, disk, &writes);
    g_assert_cmpuint(writes.apic, ==, ROUNDS);
    g_assert_cmpuint(writes.ports, ==, ROUNDS);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

int main(int argc, char **argv)
{
    g_setenv("DP_ACCEL", "kvm", true);
    g_test_init(&argc, &argv, NULL);
    dp_add_modes("/virtio-blk-dataplane/irqfd/in-kernel", test_in_kernel, true,
                 DP_ANY_RING);
    dp_add_test("/virtio-blk-dataplane/irqfd/not-in-kernel/main-loop",
                &dp_mode_main, test_not_in_kernel);
    return g_test_run();
}
