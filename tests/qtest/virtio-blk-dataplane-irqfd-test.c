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

static DpVm *vm_traced(const DpMode *mode, const char *props)
{
    g_autofree char *log = dp_tmp("trace.log");
    g_autofree char *more = g_strdup_printf(
        "%s -trace memory_region_ops_write -D %s", props, log);
    DpVm *vm = dp_vm_null(mode, "", more);

    g_assert_true(vm->kvm);
    return vm;
}

static DpVm *vm_with_eventfds(const DpMode *mode)
{
    return vm_traced(mode, "");
}

static DpVm *vm_without_eventfds(const DpMode *mode)
{
    return vm_traced(mode, ",ioeventfd=off");
}

typedef struct Writes {
    unsigned apic;              /* but for one for each kick */
    unsigned ports;
    int64_t sent;
    int64_t kicks;
} Writes;

static void run_rounds(DpDisk *disk, Writes *writes)
{
    unsigned apic = count_lines(APIC), ports = count_lines(PORTS);
    uint64_t kicks = disk->kicks, irqs = disk->irqs;
    DpInfo before, after;

    dp_info(disk->vm, "d0", &before);
    for (unsigned i = 0; i < ROUNDS; i++) {
        DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, i, DP_SECTOR);

        g_assert_cmpint(dp_run(disk, req), ==, OK);
        dp_req_free(disk, req);
    }
    dp_info(disk->vm, "d0", &after);
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
static void test_in_kernel(DpDisk *disk)
{
    Writes writes;

    dp_assert_as_asked(disk);
    run_rounds(disk, &writes);
    g_assert_cmpuint(writes.apic, ==, 0);
    g_assert_cmpuint(writes.ports, ==, 0);
    g_assert_cmpint(writes.sent, >=, ROUNDS);
    g_assert_cmpint(writes.kicks, >, 0);
}

/* What the test above would see if they did not: QEMU sees each of them. */
static void test_not_in_kernel(DpDisk *disk)
{
    Writes writes;

    run_rounds(disk, &writes);
    g_assert_cmpuint(writes.apic, ==, ROUNDS);
    g_assert_cmpuint(writes.ports, ==, ROUNDS);
}

int main(int argc, char **argv)
{
    static const DpTest plane[] = {
        { "in-kernel", test_in_kernel, .vm = vm_with_eventfds },
    };
    static const DpTest own_path = {
        "not-in-kernel", test_not_in_kernel, .vm = vm_without_eventfds
    };

    g_setenv("DP_ACCEL", "kvm", true);
    g_test_init(&argc, &argv, NULL);
    dp_add_table("irqfd", plane, ARRAY_SIZE(plane), true);
    dp_add_row("irqfd", &own_path, &dp_mode_main);
    return g_test_run();
}
