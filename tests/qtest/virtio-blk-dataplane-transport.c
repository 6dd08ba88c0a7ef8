/*
 * Transports of virtio-blk for the qtests of the data plane
 *
 * See the header for what it may know.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "libqos/virtio-mmio.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "virtio-blk-dataplane-transport.h"

#define PAGE 4096
#define MIB (1024 * 1024ull)
#define RAM_MIB 64

typedef enum Kind {
    MMIO,
    PCI_LEGACY,
    PCI_MODERN,
} Kind;

struct DpTransport {
    Kind kind;
    DpDisk *disk;
    QVirtioMMIODevice mmio;     /* its vdev is that of MMIO and PCI_LEGACY */
    QVirtioBus bus;
    unsigned num;               /* size to choose; 0: the device's */
    QPCIDevice *pdev;
    QPCIBar bar;
};

static DpTransport *of(QVirtioDevice *vdev)
{
    return container_of(vdev, DpTransport, mmio.vdev);
}

/* Where virtio-mmio is */

typedef struct MmioMachine {
    const char *arch;
    const char *args;
    uint64_t ram;
    uint64_t base;              /* of the first transport */
} MmioMachine;

static const MmioMachine mmio_machines[] = {
    { "x86_64", "microvm", 0, 0xfeb00000 },
    { "aarch64", "virt -cpu max", 0x40000000, 0x0a000000 },
};

static const MmioMachine *mmio_machine(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(mmio_machines); i++) {
        if (!strcmp(mmio_machines[i].arch, qtest_get_arch())) {
            return &mmio_machines[i];
        }
    }
    g_error("no machine with virtio-mmio is known for %s", qtest_get_arch());
}

const char *dp_mmio_bus(void)
{
    return "virtio-mmio-bus.0";
}

const char *dp_mmio_machine(void)
{
    return mmio_machine()->args;
}

DpVm *dp_mmio_vm(const char *fmt, ...)
{
    const MmioMachine *m = mmio_machine();
    g_autofree char *args = NULL;
    DpVm *vm = g_new0(DpVm, 1);
    va_list ap;

    va_start(ap, fmt);
    args = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    vm->qts = qtest_initf("-M %s -m %d -nodefaults "
                          "-object iothread,id=io0 -object iothread,id=io1 %s",
                          m->args, RAM_MIB, args);
    vm->no_proxy = true;
    alloc_init(&vm->alloc, ALLOC_NO_FLAGS, m->ram + MIB,
               m->ram + RAM_MIB * MIB, PAGE);
    return vm;
}

/* virtio-mmio */

static void mmio_write(DpTransport *t, unsigned offset, uint32_t value)
{
    qtest_writel(t->mmio.qts, t->mmio.addr + offset, value);
}

static uint32_t mmio_read(DpTransport *t, unsigned offset)
{
    return qtest_readl(t->mmio.qts, t->mmio.addr + offset);
}

static void mmio_set_features(QVirtioDevice *vdev, uint64_t features)
{
    DpTransport *t = of(vdev);

    qvirtio_mmio.set_features(vdev, features);
    if (t->mmio.version == 1) {
        mmio_write(t, VIRTIO_MMIO_GUEST_PAGE_SIZE, PAGE);
    }
}

static uint16_t mmio_get_queue_size(QVirtioDevice *vdev)
{
    DpTransport *t = of(vdev);
    unsigned num = t->num ?: mmio_read(t, VIRTIO_MMIO_QUEUE_NUM_MAX);

    mmio_write(t, VIRTIO_MMIO_QUEUE_NUM, num);
    return num;
}

static void mmio_set_address(DpTransport *t, unsigned low, uint64_t addr)
{
    mmio_write(t, low, addr);
    mmio_write(t, low + 4, addr >> 32);
}

static void mmio_set_queue_address(QVirtioDevice *vdev, QVirtQueue *vq)
{
    DpTransport *t = of(vdev);

    if (t->mmio.version == 1) {
        mmio_write(t, VIRTIO_MMIO_QUEUE_ALIGN, PAGE);
        mmio_write(t, VIRTIO_MMIO_QUEUE_PFN, vq->desc / PAGE);
        return;
    }
    mmio_set_address(t, VIRTIO_MMIO_QUEUE_DESC_LOW, vq->desc);
    mmio_set_address(t, VIRTIO_MMIO_QUEUE_AVAIL_LOW, vq->avail);
    mmio_set_address(t, VIRTIO_MMIO_QUEUE_USED_LOW, vq->used);
    mmio_write(t, VIRTIO_MMIO_QUEUE_READY, 1);
}

/* Legacy drivers select a queue after a reset, which left no address. */
static void mmio_queue_select(QVirtioDevice *vdev, uint16_t index)
{
    mmio_write(of(vdev), VIRTIO_MMIO_QUEUE_SEL, index);
}

/* The line is what the guest's CPU sees. */
static bool mmio_isr(DpTransport *t, uint32_t bit)
{
    if (!qtest_get_irq(t->mmio.qts, 0) ||
        !(mmio_read(t, VIRTIO_MMIO_INTERRUPT_STATUS) & bit)) {
        return false;
    }
    mmio_write(t, VIRTIO_MMIO_INTERRUPT_ACK, bit);
    return true;
}

static bool mmio_queue_isr(QVirtioDevice *vdev, QVirtQueue *vq)
{
    return mmio_isr(of(vdev), VIRTIO_MMIO_INT_VRING);
}

static void mmio_wait_config_isr(QVirtioDevice *vdev, gint64 timeout_us)
{
    gint64 deadline = dp_deadline();

    while (!mmio_isr(of(vdev), VIRTIO_MMIO_INT_CONFIG)) {
        dp_check_deadline(deadline, "a configuration change interrupt");
    }
}

/* The line belongs to the transport, which has no id. */
static void mmio_intercept(DpVm *vm, const char *id)
{
    g_autofree char *device = g_strdup_printf("/machine/peripheral/%s", id);
    g_autofree char *proxy = NULL;
    QDict *rsp;

    rsp = qtest_qmp(vm->qts, "{'execute': 'qom-get', 'arguments': {"
                    " 'path': %s, 'property': 'parent_bus' }}", device);
    proxy = g_path_get_dirname(qdict_get_str(rsp, "return"));
    qobject_unref(rsp);
    qtest_irq_intercept_out_named(vm->qts, proxy, "sysbus-irq");
}

DpTransport *dp_mmio_probe(DpVm *vm, const char *id)
{
    DpTransport *t = g_new0(DpTransport, 1);

    t->kind = MMIO;
    qvirtio_mmio_init_device(&t->mmio, vm->qts, mmio_machine()->base, PAGE);
    t->bus = qvirtio_mmio;
    t->bus.set_features = mmio_set_features;
    t->bus.get_queue_size = mmio_get_queue_size;
    t->bus.set_queue_address = mmio_set_queue_address;
    t->bus.queue_select = mmio_queue_select;
    t->bus.get_queue_isr_status = mmio_queue_isr;
    t->bus.wait_config_isr_status = mmio_wait_config_isr;
    t->mmio.vdev.bus = &t->bus;
    mmio_intercept(vm, id);
    t->disk = dp_disk_wrap(vm, id, &t->mmio.vdev);
    return t;
}

/* Legacy PCI */

static uint8_t legacy_config_readb(QVirtioDevice *vdev, uint64_t offset)
{
    DpTransport *t = of(vdev);

    return qpci_io_readb(t->pdev, t->bar, VIRTIO_PCI_CONFIG_OFF(0) + offset);
}

static uint16_t legacy_config_readw(QVirtioDevice *vdev, uint64_t offset)
{
    DpTransport *t = of(vdev);

    return qpci_io_readw(t->pdev, t->bar, VIRTIO_PCI_CONFIG_OFF(0) + offset);
}

static uint32_t legacy_config_readl(QVirtioDevice *vdev, uint64_t offset)
{
    DpTransport *t = of(vdev);

    return qpci_io_readl(t->pdev, t->bar, VIRTIO_PCI_CONFIG_OFF(0) + offset);
}

static uint64_t legacy_get_features(QVirtioDevice *vdev)
{
    DpTransport *t = of(vdev);

    return qpci_io_readl(t->pdev, t->bar, VIRTIO_PCI_HOST_FEATURES);
}

static void legacy_set_features(QVirtioDevice *vdev, uint64_t features)
{
    DpTransport *t = of(vdev);

    qpci_io_writel(t->pdev, t->bar, VIRTIO_PCI_GUEST_FEATURES, features);
}

static uint8_t legacy_get_status(QVirtioDevice *vdev)
{
    DpTransport *t = of(vdev);

    return qpci_io_readb(t->pdev, t->bar, VIRTIO_PCI_STATUS);
}

static void legacy_set_status(QVirtioDevice *vdev, uint8_t status)
{
    DpTransport *t = of(vdev);

    qpci_io_writeb(t->pdev, t->bar, VIRTIO_PCI_STATUS, status);
}

static void legacy_queue_select(QVirtioDevice *vdev, uint16_t index)
{
    DpTransport *t = of(vdev);

    qpci_io_writew(t->pdev, t->bar, VIRTIO_PCI_QUEUE_SEL, index);
}

static uint16_t legacy_get_queue_size(QVirtioDevice *vdev)
{
    DpTransport *t = of(vdev);

    return qpci_io_readw(t->pdev, t->bar, VIRTIO_PCI_QUEUE_NUM);
}

static void legacy_set_queue_address(QVirtioDevice *vdev, QVirtQueue *vq)
{
    DpTransport *t = of(vdev);

    qpci_io_writel(t->pdev, t->bar, VIRTIO_PCI_QUEUE_PFN,
                   vq->desc >> VIRTIO_PCI_QUEUE_ADDR_SHIFT);
}

static void legacy_kick(QVirtioDevice *vdev, QVirtQueue *vq)
{
    DpTransport *t = of(vdev);

    qpci_io_writew(t->pdev, t->bar, VIRTIO_PCI_QUEUE_NOTIFY, vq->index);
}

/* Reading the ISR clears it and takes the interrupt away. */
static bool legacy_isr(DpTransport *t, uint8_t bit)
{
    uint8_t isr;

    if (!(qpci_config_readw(t->pdev, PCI_STATUS) & PCI_STATUS_INTERRUPT)) {
        return false;
    }
    isr = qpci_io_readb(t->pdev, t->bar, VIRTIO_PCI_ISR);
    g_assert_cmpint(isr, !=, 0);
    return isr & bit;
}

static bool legacy_queue_isr(QVirtioDevice *vdev, QVirtQueue *vq)
{
    return legacy_isr(of(vdev), 1);
}

static void legacy_wait_config_isr(QVirtioDevice *vdev, gint64 timeout_us)
{
    gint64 deadline = dp_deadline();

    while (!legacy_isr(of(vdev), VIRTIO_PCI_ISR_CONFIG)) {
        dp_check_deadline(deadline, "a configuration change interrupt");
    }
}

static const QVirtioBus legacy_bus = {
    .config_readb = legacy_config_readb,
    .config_readw = legacy_config_readw,
    .config_readl = legacy_config_readl,
    .get_features = legacy_get_features,
    .set_features = legacy_set_features,
    .get_status = legacy_get_status,
    .set_status = legacy_set_status,
    .get_queue_isr_status = legacy_queue_isr,
    .wait_config_isr_status = legacy_wait_config_isr,
    .queue_select = legacy_queue_select,
    .get_queue_size = legacy_get_queue_size,
    .set_queue_address = legacy_set_queue_address,
    .virtqueue_kick = legacy_kick,
};

DpTransport *dp_legacy_probe(DpVm *vm, const char *id, int slot)
{
    DpTransport *t = g_new0(DpTransport, 1);

    t->kind = PCI_LEGACY;
    t->pdev = qpci_device_find(vm->bus, QPCI_DEVFN(slot, 0));
    g_assert_nonnull(t->pdev);
    qpci_device_enable(t->pdev);
    t->bar = qpci_iomap(t->pdev, 0, NULL);
    g_assert_true(t->bar.is_io);
    t->mmio.vdev.device_type = qpci_config_readw(t->pdev, PCI_SUBSYSTEM_ID);
    t->mmio.vdev.bus = &legacy_bus;
    t->disk = dp_disk_wrap(vm, id, &t->mmio.vdev);
    return t;
}

DpTransport *dp_modern_probe(DpVm *vm, const char *id, int slot, bool no_msix)
{
    DpTransport *t = g_new0(DpTransport, 1);

    t->kind = PCI_MODERN;
    t->disk = dp_disk_probe(vm, id, slot);
    t->disk->no_msix = no_msix;
    return t;
}

/* All of them */

void dp_transport_free(DpTransport *t)
{
    dp_disk_free(t->disk);
    g_free(t->pdev);
    g_free(t);
}

DpDisk *dp_transport_disk(DpTransport *t)
{
    return t->disk;
}

unsigned dp_transport_max_num(DpTransport *t)
{
    QVirtioDevice *vdev = t->disk->vdev;

    vdev->bus->queue_select(vdev, 0);
    return t->kind == MMIO ? mmio_read(t, VIRTIO_MMIO_QUEUE_NUM_MAX) :
                             vdev->bus->get_queue_size(vdev);
}

void dp_transport_set_num(DpTransport *t, unsigned num)
{
    g_assert(t->kind != PCI_LEGACY);
    t->num = num;
    if (t->kind == PCI_MODERN) {
        t->disk->want_num = num;
    }
}

void dp_transport_legacy_reset(DpTransport *t)
{
    QVirtQueue none = { .desc = 0 };

    t->disk->vdev->bus->set_queue_address(t->disk->vdev, &none);
    g_assert_cmpint(dp_status(t->disk), ==, 0);
}

uint64_t dp_transport_capacity(DpTransport *t)
{
    QVirtioDevice *vdev = t->disk->vdev;

    return vdev->bus->config_readl(vdev, 0) |
           (uint64_t)vdev->bus->config_readl(vdev, 4) << 32;
}
