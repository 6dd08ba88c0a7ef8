/*
 * A vCPU in KVM that takes interrupts and kicks, for the qtests of the plane
 *
 * Knows the firmware that the vCPU runs, in real mode with its APIC as x2APIC,
 * and where the two sides meet in guest memory.  Does not know rings.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "virtio-blk-dataplane-kvm.h"

/*
 * Vectors from VECTOR_BASE on are served: those of kicks first, whose number
 * is that of a mailbox, and the others, which interrupts are spread over.
 */
#define VECTOR_BASE 0x40
#define VECTORS 128
#define KICKS 32
#define PING KICKS              /* is the vCPU there? */
#define FIRST_IRQ (PING + 1)

/* Guest memory below that of libqos */
#define MAILBOX 0x5000          /* port and value of each kick */
#define COUNTERS 0x6000         /* of each vector */
#define STACK 0x7000

#define MSI_ADDRESS 0xfee00000  /* to CPU 0 */

/* Offsets in the firmware, which ends where the CPU begins */
#define FIRMWARE_SIZE 0x10000
#define STUBS 0x100             /* a stub for each vector */
#define STUB_SIZE 32
#define RESET_VECTOR 0xfff0

/* What an impatient driver waits for a vCPU that may be stopped */
#define POLLS 2000

bool dp_kvm_wanted(void)
{
    const char *accel = g_getenv("DP_ACCEL");

    return accel && !strcmp(accel, "kvm");
}

/* The firmware */

static const uint8_t boot_code[] = {
    0xfa,                                       /* cli */
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0,         /* ds = ss = 0 */
    0xbc, STACK & 0xff, STACK >> 8,             /* mov $STACK, %sp */
    /* APIC base: enable it as x2APIC */
    0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00,         /* mov $0x1b, %ecx */
    0x0f, 0x32,                                 /* rdmsr */
    0x66, 0x0d, 0x00, 0x0c, 0x00, 0x00,         /* or $0xc00, %eax */
    0x0f, 0x30,                                 /* wrmsr */
    /* Spurious interrupt vector: enable it by software, too */
    0x66, 0xb9, 0x0f, 0x08, 0x00, 0x00,         /* mov $0x80f, %ecx */
    0x66, 0xb8, 0xff, 0x01, 0x00, 0x00,         /* mov $0x1ff, %eax */
    0x66, 0x31, 0xd2,                           /* xor %edx, %edx */
    0x0f, 0x30,                                 /* wrmsr */
    /* The interrupt vectors */
    0xbf, (VECTOR_BASE * 4) & 0xff, (VECTOR_BASE * 4) >> 8, /* mov, %di */
    0xb8, STUBS & 0xff, STUBS >> 8,             /* mov $STUBS, %ax */
    0xb9, VECTORS, 0x00,                        /* mov $VECTORS, %cx */
    0x89, 0x05,                                 /* mov %ax, (%di) */
    0xc7, 0x45, 0x02, 0x00, 0xf0,               /* movw $0xf000, 2(%di) */
    0x83, 0xc7, 0x04,                           /* add $4, %di */
    0x83, 0xc0, STUB_SIZE,                      /* add $STUB_SIZE, %ax */
    0xe2, 0xf1,                                 /* loop: back to mov */
    0xfb, 0xf4, 0xeb, 0xfd,                     /* sti; hlt; back to hlt */
};

static const uint8_t reset_code[] = {
    0xea, 0x00, 0x00, 0x00, 0xf0,               /* ljmp $0xf000, $0 */
};

/* End of interrupt, by its MSR; the main program has nothing in registers. */
static const uint8_t eoi_code[] = {
    0x66, 0xb9, 0x0b, 0x08, 0x00, 0x00,         /* mov $0x80b, %ecx */
    0x66, 0x31, 0xc0,                           /* xor %eax, %eax */
    0x66, 0x31, 0xd2,                           /* xor %edx, %edx */
    0x0f, 0x30, 0xcf,                           /* wrmsr; iret */
};

static void put16(uint8_t **at, uint16_t value)
{
    stw_le_p(*at, value);
    *at += 2;
}

static void put_code(uint8_t **at, const void *code, size_t size)
{
    memcpy(*at, code, size);
    *at += size;
}

static void make_stub(uint8_t *at, unsigned vector)
{
    if (vector < KICKS) {
        put_code(&at, "\x8b\x16", 2);           /* mov port, %dx */
        put16(&at, MAILBOX + 4 * vector);
        put_code(&at, "\xa1", 1);               /* mov value, %ax */
        put16(&at, MAILBOX + 4 * vector + 2);
        put_code(&at, "\xef", 1);               /* out %ax, %dx */
    }
    put_code(&at, "\x66\xff\x06", 3);           /* incl counter */
    put16(&at, COUNTERS + 4 * vector);
    put_code(&at, eoi_code, sizeof(eoi_code));
}

char *dp_kvm_args(void)
{
    g_autofree char *path = dp_tmp("firmware.bin");
    g_autofree uint8_t *image = g_malloc0(FIRMWARE_SIZE);

    memcpy(image, boot_code, sizeof(boot_code));
    for (unsigned i = 0; i < VECTORS; i++) {
        make_stub(image + STUBS + i * STUB_SIZE, i);
    }
    memcpy(image + RESET_VECTOR, reset_code, sizeof(reset_code));
    g_assert_true(g_file_set_contents(path, (char *)image, FIRMWARE_SIZE,
                                      NULL));
    return g_strdup_printf("-accel kvm,kernel-irqchip=on -bios %s ", path);
}

/* The vCPU */

static uint32_t count_of(DpVm *vm, unsigned vector)
{
    return qtest_readl(vm->qts, COUNTERS + 4 * vector);
}

/* Sends an interrupt of our own; false if the vCPU did not take it */
static bool interrupt(DpVm *vm, unsigned vector)
{
    uint32_t before = count_of(vm, vector);

    qtest_writel(vm->qts, MSI_ADDRESS, VECTOR_BASE + vector);
    for (unsigned i = 0; i < POLLS; i++) {
        if (count_of(vm, vector) != before) {
            return true;
        }
    }
    return false;
}

/* After power-on and after a reset it takes a moment. */
static bool wait_for_vcpu(DpVm *vm)
{
    for (unsigned i = 0; i < 20; i++) {
        if (interrupt(vm, PING)) {
            return true;
        }
    }
    return false;
}

void dp_kvm_init(DpVm *vm)
{
    QDict *rsp = qtest_qmp(vm->qts, "{'execute': 'query-kvm'}");

    g_assert_true(qdict_get_bool(qdict_get_qdict(rsp, "return"), "enabled"));
    qobject_unref(rsp);
    g_assert_true(wait_for_vcpu(vm));
}

/* Runs a QEMU of its own, once */
static char *try_kvm(void)
{
    g_autofree char *args = NULL;
    DpVm vm = {};
    bool works;

    if (strcmp(qtest_get_arch(), "x86_64")) {
        return g_strdup("the firmware is for x86");
    }
    if (access("/dev/kvm", R_OK | W_OK) < 0) {
        return g_strdup_printf("/dev/kvm: %s", strerror(errno));
    }
    if (!qtest_has_accel("kvm")) {
        return g_strdup("this QEMU has no KVM");
    }
    args = dp_kvm_args();
    /* Where KVM does not start, QEMU goes on to the qtest accelerator. */
    vm.qts = qtest_initf("-M pc -m 64 -nodefaults %s", args);
    works = wait_for_vcpu(&vm);
    qtest_quit(vm.qts);
    dp_tmp_cleanup();
    return works ? NULL : g_strdup("KVM does not run a vCPU on this host");
}

const char *dp_kvm_refusal(void)
{
    static char *reason;
    static bool tried;

    if (!tried) {
        reason = try_kvm();
        tried = true;
    }
    return reason;
}

/* Interrupts */

uint32_t dp_kvm_set_vector(DpDisk *disk, unsigned entry, unsigned *vector)
{
    QPCIDevice *pdev = disk->pci->pdev;
    uint64_t off = pdev->msix_table_off + entry * PCI_MSIX_ENTRY_SIZE;
    DpVm *vm = disk->vm;

    if (!*vector) {
        *vector = FIRST_IRQ + vm->next_vector++ % (VECTORS - FIRST_IRQ);
    }
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   off + PCI_MSIX_ENTRY_LOWER_ADDR, MSI_ADDRESS);
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   off + PCI_MSIX_ENTRY_DATA, VECTOR_BASE + *vector);
    wait_for_vcpu(vm);
    return count_of(vm, *vector);
}

bool dp_kvm_irq(DpVm *vm, unsigned vector, uint32_t *seen)
{
    uint32_t count = count_of(vm, vector);
    bool irq = count != *seen;

    *seen = count;
    return irq;
}

/* Kicks, by the legacy port, which the device offers beside the modern one */

static uint16_t kick_port(DpDisk *disk)
{
    uint32_t bar = qpci_config_readl(disk->pci->pdev, PCI_BASE_ADDRESS_0);

    if (!(bar & PCI_BASE_ADDRESS_SPACE_IO)) {
        return 0;
    }
    bar &= PCI_BASE_ADDRESS_IO_MASK;
    if (!bar) {
        bar = qpci_iomap(disk->pci->pdev, 0, NULL).addr;
    }
    return bar + VIRTIO_PCI_QUEUE_NOTIFY;
}

bool dp_kvm_kick(DpDisk *disk)
{
    unsigned box = disk->index % KICKS;
    uint16_t port;

    if (!disk->pci) {
        return false;
    }
    port = kick_port(disk);
    if (!port) {
        return false;
    }
    qtest_writel(disk->vm->qts, MAILBOX + 4 * box,
                 port | (uint32_t)disk->index << 16);
    /* If the machine is stopped the vCPU kicks when it goes on. */
    interrupt(disk->vm, box);
    return true;
}
