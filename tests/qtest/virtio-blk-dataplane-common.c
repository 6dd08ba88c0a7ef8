/*
 * A small virtio-blk driver for the qtests of the data plane
 *
 * See the header for what it may know.  Requests are laid out here, rings are
 * driven by virtio-blk-dataplane-ring.c, libqos finds the device and reaches
 * its registers.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/io_uring.h>
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/pci_regs.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "virtio-blk-dataplane-common.h"
#include "virtio-blk-dataplane-kvm.h"
#include "virtio-blk-dataplane-ram.h"

#define PAGE 4096ull
#define STATUS_OFFSET 64
#define TABLE_OFFSET 256
#define HEADER_BYTES 16
#define HEAD_BYTES 128          /* header, canaries and status */
#define CANARY 0xa5
#define DEFAULT_NUM 256
#define MIB (1024 * 1024ull)
#define RAM_MIB 64
#define PCIHP_EJECT 0xae08      /* register of the PC's PCI hot plug */
#define VIRT_RAM 0x40000000ull
#define SPLIT_AT 200            /* odd place to cut data at */
#define PORT_WINDOW 0xe0000000u /* memory behind a root port, 16 MiB */
#define PORT_WINDOWS 0xe0f0e000u
#define VECTOR_CONFIG 0
#define VECTOR_QUEUE 1          /* and on, one for each queue */

const DpMode dp_mode_iothread = {
    "iothread", ",iothread=io0", "'iothread': 'io0'", true
};
const DpMode dp_mode_private = {
    "private", ",x-data-plane=on", "'x-data-plane': 'on'", true
};
const DpMode dp_mode_off = {
    "off", ",iothread=io0,x-data-plane=off",
    "'iothread': 'io0', 'x-data-plane': 'off'", false
};
const DpMode dp_mode_main = {
    "main-loop", "", "'x-data-plane': 'auto'", false
};

const DpMode dp_mode_packed = {
    "packed", ",iothread=io0,packed=on",
    "'iothread': 'io0', 'packed': true", true, .packed = true
};
const DpMode dp_mode_in_order = {
    "in-order", ",iothread=io0,in_order=on",
    "'iothread': 'io0', 'in_order': true", true, .in_order = true
};
const DpMode dp_mode_packed_in_order = {
    "packed-in-order", ",iothread=io0,packed=on,in_order=on",
    "'iothread': 'io0', 'packed': true, 'in_order': true",
    true, .packed = true, .in_order = true
};
const DpMode dp_mode_off_packed = {
    "off-packed", ",iothread=io0,x-data-plane=off,packed=on",
    "'iothread': 'io0', 'x-data-plane': 'off', 'packed': true",
    false, .packed = true
};

const DpMode *const dp_modes[] = {
    &dp_mode_iothread, &dp_mode_private, &dp_mode_off, &dp_mode_main,
    &dp_mode_packed, &dp_mode_in_order, &dp_mode_packed_in_order,
    &dp_mode_off_packed, NULL
};

const char *const dp_framing_name[DP_FRAMING__MAX] = {
    [DP_DIRECT] = "direct",
    [DP_MERGED] = "merged",
    [DP_BYTES] = "bytes",
    [DP_INDIRECT] = "indirect",
    [DP_INDIRECT_WRITE] = "indirect-write",
    [DP_HALF_INDIRECT] = "half-indirect",
    [DP_SHUFFLED] = "shuffled",
};

/* Hang guards */

gint64 dp_deadline(void)
{
    return g_get_monotonic_time() + DP_HANG_SECONDS * G_TIME_SPAN_SECOND;
}

void dp_check_deadline(gint64 deadline, const char *what)
{
    if (g_get_monotonic_time() > deadline) {
        g_error("no progress within %d seconds while waiting for %s",
                DP_HANG_SECONDS, what);
    }
}

/* Files */

static char *tmp_dir;

static void tmp_remove(void *unused)
{
    const char *name;
    GDir *dir;

    if (!tmp_dir) {
        return;
    }
    dir = g_dir_open(tmp_dir, 0, NULL);
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(tmp_dir, name, NULL);

        unlink(path);
    }
    if (dir) {
        g_dir_close(dir);
    }
    rmdir(tmp_dir);
}

char *dp_tmp(const char *name)
{
    if (!tmp_dir) {
        g_autoptr(GError) err = NULL;

        tmp_dir = g_dir_make_tmp("dataplane-XXXXXX", &err);
        g_assert_no_error(err);
        qtest_add_abrt_handler(tmp_remove, &tmp_dir);
    }
    return g_build_filename(tmp_dir, name, NULL);
}

void dp_tmp_cleanup(void)
{
    if (tmp_dir) {
        tmp_remove(NULL);
        qtest_remove_abrt_handler(&tmp_dir);
        g_free(tmp_dir);
        tmp_dir = NULL;
    }
}

char *dp_image(const char *name, uint64_t size)
{
    char *path = dp_tmp(name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    close(fd);
    return path;
}

/* An NBD server */

#define STORAGE_DAEMON "QTEST_QEMU_STORAGE_DAEMON_BINARY"

bool dp_nbd_can(void)
{
    return g_getenv(STORAGE_DAEMON);
}

void dp_nbd_kill(GPid pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Context: the child; it must not outlive a test that fails */
static void nbd_setup(void *unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

GPid dp_nbd_start(void)
{
    g_autofree char *image = dp_tmp("disk.img");
    g_autofree char *sock = dp_tmp("nbd.sock");
    g_autofree char *pid_file = dp_tmp("nbd.pid");
    g_autofree char *line = g_strdup_printf(
        "%s --blockdev file,node-name=f,filename=%s,discard=unmap"
        " --nbd-server addr.type=unix,addr.path=%s"
        " --export nbd,id=e,node-name=f,name=disk,writable=on --pidfile %s",
        g_getenv(STORAGE_DAEMON), image, sock, pid_file);
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    gint64 deadline = dp_deadline();
    GPid pid;

    unlink(pid_file);
    g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
    g_spawn_async(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD, nbd_setup,
                  NULL, &pid, &error);
    g_assert_no_error(error);
    /* The file is written when the server listens. */
    while (!g_file_test(pid_file, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(waitpid(pid, NULL, WNOHANG), ==, 0);
        dp_check_deadline(deadline, "the NBD server");
        g_usleep(1000);
    }
    return pid;
}

/* The machine */

static void vm_init_pc(DpVm *vm)
{
    if (vm->kvm) {
        dp_kvm_init(vm);
    }
    pc_alloc_init(&vm->alloc, vm->qts, ALLOC_NO_FLAGS);
    vm->bus = qpci_new_pc(vm->qts, &vm->alloc);
}

static void vm_init_virt(DpVm *vm)
{
    alloc_init(&vm->alloc, ALLOC_NO_FLAGS, VIRT_RAM + MIB,
               VIRT_RAM + RAM_MIB * MIB, PAGE);
    qos_create_generic_pcihost(&vm->host, vm->qts, &vm->alloc);
    vm->bus = &vm->host.pci.bus;
}

DpVm *dp_vm_start(const char *fmt, ...)
{
    g_autofree char *args = NULL;
    g_autofree char *kvm_args = NULL;
    g_autofree char *ram_args = NULL;
    int ram_fd = -1;
    DpVm *vm = g_new0(DpVm, 1);
    bool is_virt = !strcmp(qtest_get_arch(), "aarch64");
    va_list ap;

    va_start(ap, fmt);
    args = g_strdup_vprintf(fmt, ap);
    va_end(ap);

    vm->kvm = !is_virt && dp_kvm_wanted() && !dp_kvm_refusal();
    kvm_args = vm->kvm ? dp_kvm_args() : g_strdup("");
    if (g_str_has_prefix(args, DP_SHARED_RAM)) {
        ram_fd = dp_ram_fd(RAM_MIB * MIB);
        ram_args = g_strdup_printf("-object memory-backend-file,id=ram,"
                                   "size=%dM,share=on,"
                                   "mem-path=/proc/self/fd/%d ",
                                   RAM_MIB, ram_fd);
    }
    vm->qts = qtest_initf("-M %s -m %d -nodefaults %s"
                          "-object iothread,id=io0 -object iothread,id=io1 "
                          "%s%s", is_virt ? "virt -cpu max" : "pc", RAM_MIB,
                          kvm_args, ram_args ?: "", args);
    if (ram_fd >= 0) {
        dp_ram_map(vm, ram_fd, is_virt ? VIRT_RAM : 0, RAM_MIB * MIB);
    }
    if (is_virt) {
        vm_init_virt(vm);
    } else {
        vm_init_pc(vm);
    }
    return vm;
}

void dp_vm_end(DpVm *vm)
{
    if (vm->bus != &vm->host.pci.bus) {
        qpci_free_pc(vm->bus);
    }
    alloc_destroy(&vm->alloc);
    qtest_quit(vm->qts);
    dp_ram_unmap(vm);
    g_free(vm);
}

void dp_vm_quit(DpVm *vm)
{
    dp_vm_end(vm);
    dp_tmp_cleanup();
}

unsigned long dp_vm_status_kib(DpVm *vm, const char *field)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            (int)qtest_pid(vm->qts));
    g_autofree char *status = NULL;
    const char *line;

    g_assert_true(g_file_get_contents(path, &status, NULL, NULL));
    line = strstr(status, field);
    g_assert_nonnull(line);
    return g_ascii_strtoull(line + strlen(field), NULL, 10);
}

DpVm *dp_vm_null(const DpMode *mode, const char *opts, const char *props)
{
    DpVm *vm = dp_vm_start(
        DP_SHARED_RAM "-blockdev null-co,node-name=n0,size=67108864%s "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s%s",
        opts, DP_SLOT, mode->props, props);

    vm->mode = mode;
    return vm;
}

bool dp_can_open_direct(void)
{
    g_autofree char *path = dp_image("direct.img", 4096);
    int fd = open(path, O_RDWR | O_DIRECT);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

bool dp_can_io_uring(void)
{
    struct io_uring_params params = { 0 };
    int fd = syscall(SYS_io_uring_setup, 1, &params);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

DpVm *dp_vm_file_aio(const DpMode *mode, uint64_t size, const char *aio,
                     const char *props)
{
    g_autofree char *path = dp_image("disk.img", size);
    DpVm *vm = dp_vm_start(
        DP_SHARED_RAM
        "-blockdev file,node-name=f0,filename=%s,discard=unmap,aio=%s "
        "-blockdev raw,node-name=n0,file=f0,discard=unmap "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d%s%s",
        path, aio, DP_SLOT, mode->props, props);

    vm->mode = mode;
    return vm;
}

DpVm *dp_vm_file(const DpMode *mode, uint64_t size, const char *props)
{
    return dp_vm_file_aio(mode, size,
                          dp_can_io_uring() ? "io_uring" : "threads", props);
}

/* The device */

static void common_writew(DpDisk *disk, size_t offset, uint16_t value)
{
    qpci_io_writew(disk->pci->pdev, disk->pci->bar,
                   disk->pci->common_cfg_offset + offset, value);
}

static uint16_t common_readw(DpDisk *disk, size_t offset)
{
    return qpci_io_readw(disk->pci->pdev, disk->pci->bar,
                         disk->pci->common_cfg_offset + offset);
}

static bool is_modern(DpDisk *disk)
{
    return disk->pci &&
           (disk->pci->common_cfg_offset || disk->pci->notify_cfg_offset);
}

DpDisk *dp_disk_wrap(DpVm *vm, const char *id, QVirtioDevice *vdev)
{
    DpDisk *disk = g_new0(DpDisk, 1);

    g_assert_cmpint(vdev->device_type, ==, VIRTIO_ID_BLOCK);
    disk->vm = vm;
    disk->id = g_strdup(id);
    disk->vdev = vdev;
    disk->no_msix = true;
    disk->queues = g_ptr_array_new();
    g_ptr_array_add(disk->queues, disk);
    dp_ring_new(disk);
    return disk;
}

DpVm *dp_vm_parking(const DpMode *mode, const char *props)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);

    return dp_vm_start(
        DP_SHARED_RAM "-blockdev '{\"driver\": \"raw\", \"node-name\": \"n0\","
        " \"file\": {\"driver\": \"blkdebug\", \"image\":"
        " {\"driver\": \"file\", \"filename\": \"%s\"},"
        " \"inject-error\": [{\"event\": \"none\", \"iotype\": \"write\","
        " \"errno\": 28, \"once\": true}]}}' "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,werror=stop%s%s", path,
        DP_SLOT, mode->props, props);
}

void dp_plug_disk(DpVm *vm, const char *node, const DpMode *mode,
                  const char *json)
{
    g_autofree char *cmd = g_strdup_printf(
        "{'execute': 'device_add', 'arguments': {"
        " 'driver': 'virtio-blk-pci', 'id': 'd0', 'drive': '%s',"
        " 'addr': '%d', %s%s}}", node, DP_SLOT, mode->json, json);

    dp_qmp_ok(vm, NULL, "%p", qobject_from_json(cmd, &error_abort));
}

/*
 * Only a throttle group that is made when QEMU has its accelerator goes by
 * qtest's clock: those of the command line are made before.
 *
 * A tenth of the limit may come at once, so that with less than 10 one write
 * passes.  With a lower limit, a step of the clock takes long: it waits until
 * an IOThread has slept for the time that the clock is stepped.
 */
DpVm *dp_vm_slow_metadata(const DpMode *mode, uint64_t size, const char *json)
{
    g_autofree char *path = dp_tmp("disk.qcow2");
    DpVm *vm = dp_vm_start(DP_SHARED_RAM);

    g_assert_true(mkimg(path, "qcow2", size / MIB));
    vm->mode = mode;
    dp_qmp_ok(vm, NULL, "{'execute': 'object-add', 'arguments': {"
              " 'qom-type': 'throttle-group', 'id': 'tg',"
              " 'limits': {'iops-write': 8}}}");
    dp_qmp_ok(vm, NULL, "{'execute': 'blockdev-add', 'arguments': {"
              " 'driver': 'raw', 'node-name': 'n0', 'file': {"
              "  'driver': 'qcow2', 'node-name': 'q0', 'file': {"
              "   'driver': 'throttle', 'throttle-group': 'tg', 'file': {"
              "    'driver': 'file', 'filename': %s}}}}}", path);
    dp_plug_disk(vm, "n0", mode, json);
    return vm;
}

void dp_vm_lift_limit(DpVm *vm)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'qom-set', 'arguments': {"
              " 'path': '/objects/tg', 'property': 'limits',"
              " 'value': {'iops-write': 0}}}");
}

void dp_open_port(DpVm *vm, int devfn, unsigned bus)
{
    QPCIDevice *port = qpci_device_find(vm->bus, devfn);

    g_assert_nonnull(port);
    vm->bus->mmio_alloc_ptr = PORT_WINDOW;
    qpci_config_writel(port, PCI_PRIMARY_BUS, bus << 16 | bus << 8);
    qpci_config_writel(port, PCI_MEMORY_BASE, PORT_WINDOWS);
    qpci_config_writel(port, PCI_PREF_MEMORY_BASE, PORT_WINDOWS);
    qpci_device_enable(port);
    g_free(port);
}

DpDisk *dp_disk_probe(DpVm *vm, const char *id, int slot)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(slot, 0) };
    QVirtioPCIDevice *pci = virtio_pci_new(vm->bus, &addr);
    DpDisk *disk;

    g_assert_nonnull(pci);
    disk = dp_disk_wrap(vm, id, &pci->vdev);
    disk->pci = pci;
    disk->no_msix = false;
    qvirtio_pci_device_enable(pci);
    return disk;
}

/* The queues that the driver uses, queue 0 first, as long as there are any */
static DpDisk *nth_queue(DpDisk *disk, unsigned n)
{
    return n < disk->queues->len ? g_ptr_array_index(disk->queues, n) : NULL;
}

DpDisk *dp_disk_queue(DpDisk *disk, unsigned index)
{
    DpDisk *queue;

    for (unsigned i = 0; (queue = nth_queue(disk, i)); i++) {
        if (queue->index == index) {
            return queue;
        }
    }
    queue = g_new0(DpDisk, 1);
    queue->vm = disk->vm;
    queue->id = disk->id;
    queue->pci = disk->pci;
    queue->vdev = disk->vdev;
    queue->no_msix = disk->no_msix;
    queue->queues = disk->queues;
    queue->index = index;
    queue->want_num = disk->want_num;
    dp_ring_new(queue);
    g_ptr_array_add(disk->queues, queue);
    return queue;
}

void dp_disk_free(DpDisk *disk)
{
    for (unsigned i = disk->queues->len; i-- > 0;) {
        DpDisk *queue = nth_queue(disk, i);

        dp_ring_free(queue);
        g_free(queue->vqpci);
        if (i > 0) {
            g_free(queue);
        }
    }
    g_ptr_array_free(disk->queues, true);
    if (disk->pci) {
        g_free(disk->pci->pdev);
        g_free(disk->pci);
    }
    g_free(disk->id);
    g_free(disk);
}

static void forget_in_flight(DpDisk *disk)
{
    DpDisk *queue;

    for (unsigned i = 0; (queue = nth_queue(disk, i)); i++) {
        if (queue->by_head) {
            dp_ring_forget(queue);
        }
    }
}

void dp_disk_reset(DpDisk *disk)
{
    qvirtio_reset(disk->vdev);
    forget_in_flight(disk);
}

void dp_disk_new_ring(DpDisk *disk)
{
    disk->ring = 0;
}

static void place_ring(DpDisk *disk)
{
    QVirtQueue *vq = disk->vq;
    uint64_t size = qvring_size(disk->num, PAGE) + PAGE;

    if (!disk->ring || disk->ring_size < size) {
        disk->ring = guest_alloc(&disk->vm->alloc, size);
        disk->ring_size = size;
    }
    dp_ram_set(disk->vm, disk->ring, 0, size);
    vq->desc = disk->ring;
    vq->avail = vq->desc + 16 * disk->num;
    vq->used = QEMU_ALIGN_UP(vq->avail + 6 + 2 * disk->num, PAGE);
}

static void enable_queue(DpDisk *disk)
{
    disk->vdev->bus->queue_select(disk->vdev, disk->index);
    disk->vdev->bus->set_queue_address(disk->vdev, disk->vq);
    if (is_modern(disk)) {
        common_writew(disk, offsetof(struct virtio_pci_common_cfg,
                                     queue_enable), 1);
    }
}

void dp_disk_place_ring(DpDisk *disk, uint64_t desc, uint64_t avail,
                        uint64_t used)
{
    disk->vq->desc = desc;
    disk->vq->avail = avail;
    disk->vq->used = used;
    enable_queue(disk);
}

static void set_up_queue(DpDisk *disk)
{
    QVirtioDevice *vdev = disk->vdev;
    unsigned want = disk->want_num;

    vdev->bus->queue_select(vdev, disk->index);
    disk->num = vdev->bus->get_queue_size(vdev);
    if (!want && is_modern(disk)) {
        want = MIN(disk->num, DEFAULT_NUM);
    }
    if (want) {
        common_writew(disk, offsetof(struct virtio_pci_common_cfg,
                                     queue_size), want);
        disk->num = common_readw(disk, offsetof(struct virtio_pci_common_cfg,
                                                queue_size));
        g_assert_cmpuint(disk->num, ==, want);
    }

    g_free(disk->vqpci);
    disk->vqpci = g_new0(QVirtQueuePCI, 1);
    disk->vq = &disk->vqpci->vq;
    disk->vq->vdev = vdev;
    disk->vq->index = disk->index;
    disk->vq->size = disk->num;
    disk->vq->event = disk->features & (1ull << VIRTIO_RING_F_EVENT_IDX);
    disk->vq->indirect = disk->features & (1ull << VIRTIO_RING_F_INDIRECT_DESC);
    if (is_modern(disk)) {
        uint16_t off = common_readw(disk,
                                    offsetof(struct virtio_pci_common_cfg,
                                             queue_notify_off));
        disk->vqpci->notify_offset = disk->pci->notify_cfg_offset +
                                     off * disk->pci->notify_off_multiplier;
    }

    dp_ring_init(disk);
    place_ring(disk);
    if (disk->packed && disk->vq->event) {
        dp_set_event(disk, 0, 1);
    }
}

static void set_up_queue_vector(DpDisk *disk)
{
    unsigned vector = VECTOR_QUEUE + disk->index;

    if (disk->no_msix) {
        return;
    }
    disk->vqpci->msix_data = 0x5a5a0000 | vector;
    qvirtqueue_pci_msix_setup(disk->pci, disk->vqpci, &disk->vm->alloc,
                              vector);
    qtest_writel(disk->vm->qts, disk->vqpci->msix_addr, 0);
    if (disk->vm->kvm) {
        disk->irqs_seen = dp_kvm_set_vector(disk, vector, &disk->vector);
    }
}

static void set_up_config_vector(DpDisk *disk)
{
    if (disk->no_msix) {
        return;
    }
    if (!disk->pci->pdev->msix_enabled) {
        qpci_msix_enable(disk->pci->pdev);
    }
    qvirtio_pci_set_msix_configuration_vector(disk->pci, &disk->vm->alloc,
                                              VECTOR_CONFIG);
    qtest_writel(disk->vm->qts, disk->pci->config_msix_addr, 0);
    if (disk->vm->kvm) {
        disk->config_irqs_seen = dp_kvm_set_vector(disk, VECTOR_CONFIG,
                                                   &disk->config_vector);
    }
}

/* The vector comes before queue_enable, as everything else (4.1.5.1.3) */
static void start_queue(DpDisk *queue)
{
    set_up_queue(queue);
    set_up_queue_vector(queue);
    enable_queue(queue);
}

static void start_queues(DpDisk *disk)
{
    DpDisk *queue;

    for (unsigned i = 0; (queue = nth_queue(disk, i)); i++) {
        queue->features = disk->features;
        queue->packed = disk->features & (1ull << VIRTIO_F_RING_PACKED);
        queue->in_order = disk->features & (1ull << VIRTIO_F_IN_ORDER);
        if (!queue->unused) {
            start_queue(queue);
        }
    }
}

void dp_disk_init(DpDisk *disk, uint64_t features)
{
    QVirtioDevice *vdev = disk->vdev;

    forget_in_flight(disk);
    qvirtio_start_device(vdev);
    features &= qvirtio_get_features(vdev);
    features &= ~QVIRTIO_F_BAD_FEATURE;
    features &= ~(1ull << VIRTIO_F_NOTIFY_ON_EMPTY);
    if (is_modern(disk)) {
        features |= 1ull << VIRTIO_F_VERSION_1;
    }
    disk->features = features;
    qvirtio_set_features(vdev, features);
    set_up_config_vector(disk);
    start_queues(disk);
}

void dp_disk_start(DpDisk *disk, uint64_t features)
{
    dp_disk_init(disk, features);
    qvirtio_set_driver_ok(disk->vdev);
}

#define Q_RESET offsetof(struct virtio_pci_modern_common_cfg, queue_reset)
#define Q_ENABLE offsetof(struct virtio_pci_common_cfg, queue_enable)

void dp_queue_reset(DpDisk *queue)
{
    g_assert_true(queue->features & (1ull << VIRTIO_F_RING_RESET));
    queue->vdev->bus->queue_select(queue->vdev, queue->index);
    common_writew(queue, Q_RESET, 1);
    g_assert_cmpuint(common_readw(queue, Q_RESET), ==, 0);
    g_assert_cmpuint(common_readw(queue, Q_ENABLE), ==, 0);
    dp_ring_forget(queue);
}

void dp_queue_restart(DpDisk *queue)
{
    start_queue(queue);
}

DpDisk *dp_disk_new(DpVm *vm, uint64_t features)
{
    DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);

    dp_disk_start(disk, features);
    return disk;
}

uint8_t dp_status(DpDisk *disk)
{
    return disk->vdev->bus->get_status(disk->vdev);
}

void dp_assert_broken(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (!(dp_status(disk) & VIRTIO_CONFIG_S_NEEDS_RESET)) {
        dp_check_deadline(deadline, "DEVICE_NEEDS_RESET");
    }
    dp_wait_config_irq(disk);
}

void dp_assert_works(DpDisk *disk)
{
    uint32_t seed = g_test_rand_int();

    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_OUT, 40, 4096, seed), ==, 0);
    g_assert_cmpint(dp_rw(disk, VIRTIO_BLK_T_IN, 40, 4096, seed), ==, 0);
}

/* Requests */

static bool data_to_guest(uint32_t type)
{
    switch (type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_GET_ID:
    case VIRTIO_BLK_T_ZONE_REPORT:
        return true;
    default:
        return false;
    }
}

DpReq *dp_req(DpDisk *disk, uint32_t type, uint64_t sector, uint32_t len)
{
    DpReq *req = g_new0(DpReq, 1);

    req->type = type;
    req->sector = sector;
    req->len = len;
    req->to_guest = data_to_guest(type);
    /* One byte more for the status of DP_MERGED */
    req->page = guest_alloc(&disk->vm->alloc, PAGE + len + 1);
    req->data = req->page + PAGE;
    req->status_addr = req->page + STATUS_OFFSET;
    req->table = req->page + TABLE_OFFSET;
    return req;
}

void dp_req_free(DpDisk *disk, DpReq *req)
{
    g_assert_false(req->in_flight);
    guest_free(&disk->vm->alloc, req->page);
    g_free(req);
}

void dp_req_drop(DpDisk *disk, DpReq **req, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        req[i]->in_flight = false;
        dp_req_free(disk, req[i]);
    }
}

static void fill_pattern(uint32_t *buf, size_t len, uint64_t sector,
                         uint32_t seed)
{
    for (size_t i = 0; i < len / 4; i++) {
        buf[i] = seed * 2654435761u + sector * 97 + i;
    }
}

void dp_req_fill(DpDisk *disk, DpReq *req, uint32_t seed)
{
    g_autofree uint32_t *buf = g_malloc0(req->len + 4);

    if (req->len) {
        fill_pattern(buf, req->len, req->sector, seed);
        dp_ram_write(disk->vm, req->data, buf, req->len);
    }
}

bool dp_req_matches(DpDisk *disk, DpReq *req, uint32_t seed)
{
    g_autofree uint32_t *want = g_malloc0(req->len + 4);
    g_autofree uint32_t *got = g_malloc0(req->len + 4);

    if (!req->len) {
        return true;
    }
    fill_pattern(want, req->len, req->sector, seed);
    dp_ram_read(disk->vm, req->data, got, req->len);
    return memcmp(want, got, req->len) == 0;
}

bool dp_req_is_byte(DpDisk *disk, DpReq *req, uint8_t byte)
{
    g_autofree uint8_t *got = g_malloc0(req->len);

    if (!req->len) {
        return true;
    }
    dp_ram_read(disk->vm, req->data, got, req->len);
    for (uint32_t i = 0; i < req->len; i++) {
        if (got[i] != byte) {
            return false;
        }
    }
    return true;
}

static void head_image(const DpReq *req, uint8_t status, uint8_t *buf)
{
    struct virtio_blk_outhdr hdr = {
        .type = cpu_to_le32(req->type),
        .ioprio = cpu_to_le32(req->reserved),
        .sector = cpu_to_le64(req->sector),
    };

    memset(buf, CANARY, HEAD_BYTES);
    memcpy(buf, &hdr, sizeof(hdr));
    buf[STATUS_OFFSET] = status;
}

static unsigned add_seg(DpSeg *seg, unsigned n, uint64_t addr, uint32_t len,
                        uint16_t flags)
{
    if (len) {
        seg[n++] = (DpSeg) { addr, len, flags };
    }
    return n;
}

/* Segments of a request, in its framing but not yet in a table */
static unsigned build_segs(const DpReq *req, DpSeg *seg)
{
    uint16_t flags = req->to_guest ? VRING_DESC_F_WRITE : 0;
    unsigned n = 0;

    if (req->framing == DP_BYTES) {
        uint32_t cut = MIN(req->len, SPLIT_AT + 1);

        n = add_seg(seg, n, req->page, 1, 0);
        n = add_seg(seg, n, req->page + 1, 6, 0);
        n = add_seg(seg, n, req->page + 7, 9, 0);
        n = add_seg(seg, n, req->data, cut, flags);
        n = add_seg(seg, n, req->data + cut, req->len - cut, flags);
    } else if (req->pieces) {
        uint32_t piece = req->len / req->pieces;

        n = add_seg(seg, n, req->page, 16, 0);
        for (unsigned i = 0; i < req->pieces; i++) {
            n = add_seg(seg, n, req->data + i * piece, piece, flags);
        }
    } else {
        n = add_seg(seg, n, req->header_at ?: req->page, HEADER_BYTES, 0);
        n = add_seg(seg, n, req->data, req->len, flags);
    }
    return add_seg(seg, n, req->status_addr, 1, VRING_DESC_F_WRITE);
}

/*
 * Header and data, or data and status, in one descriptor: header or status
 * move next to the data.
 */
static unsigned build_merged(DpDisk *disk, DpReq *req, DpSeg *seg)
{
    unsigned n = 0;

    if (req->to_guest) {
        req->status_addr = req->data + req->len;
        dp_ram_writeb(disk->vm, req->status_addr, DP_NO_STATUS);
        n = add_seg(seg, n, req->page, 16, 0);
        return add_seg(seg, n, req->data, req->len + 1, VRING_DESC_F_WRITE);
    } else {
        uint8_t head[HEAD_BYTES];

        head_image(req, DP_NO_STATUS, head);
        dp_ram_write(disk->vm, req->data - 16, head, 16);
        n = add_seg(seg, n, req->data - 16, req->len + 16, 0);
        return add_seg(seg, n, req->status_addr, 1, VRING_DESC_F_WRITE);
    }
}

/*
 * Entries follow each other, or are chained backwards with holes between them.
 * In a packed ring they follow each other without a flag (2.8.7).
 */
static DpSeg build_table(DpDisk *disk, DpReq *req, const DpSeg *seg,
                         unsigned n, DpFraming framing)
{
    bool shuffled = framing == DP_SHUFFLED;
    unsigned entries = shuffled ? 2 * n + 1 : n;
    g_autofree struct vring_desc *table = g_new(struct vring_desc, entries);

    memset(table, 0xee, entries * sizeof(*table));
    for (unsigned i = 0; i < n; i++) {
        bool last = disk->packed || i == n - 1;
        /* 0, then from the end of the table down, every other one a hole */
        unsigned at = shuffled && i ? entries - 2 * i : i;
        unsigned next = shuffled ? entries - 2 * (i + 1) : i + 1;

        dp_desc_fill(disk, &table[at], seg[i].addr, seg[i].len,
                     seg[i].flags | (last ? 0 : VRING_DESC_F_NEXT),
                     last ? 0xeeee : next);
    }
    dp_ram_write(disk->vm, req->table, table,
                   entries * sizeof(*table));
    return (DpSeg) {
        req->table, entries * sizeof(*table),
        VRING_DESC_F_INDIRECT |
        (framing == DP_INDIRECT_WRITE ? VRING_DESC_F_WRITE : 0)
    };
}

/*
 * What the ring does not allow becomes a table in order: in-order use one that
 * is out of order (2.7.5.3.1), a packed ring also one behind a direct
 * descriptor (2.8.19).
 */
static DpFraming framing_for(DpDisk *disk, DpFraming framing)
{
    if (framing == DP_SHUFFLED && (disk->packed || disk->in_order)) {
        return DP_INDIRECT;
    }
    if (framing == DP_HALF_INDIRECT && disk->packed) {
        return DP_INDIRECT;
    }
    return framing;
}

static void write_head(DpDisk *disk, DpReq *req)
{
    uint8_t head[HEAD_BYTES];

    g_assert_false(req->in_flight);
    req->status_addr = req->status_at ?: req->page + STATUS_OFFSET;
    head_image(req, DP_NO_STATUS, head);
    dp_ram_write(disk->vm, req->page, head, sizeof(head));
    if (req->header_at) {
        dp_ram_write(disk->vm, req->header_at, head, HEADER_BYTES);
    }
    if (req->status_at) {
        dp_ram_writeb(disk->vm, req->status_at, DP_NO_STATUS);
    }
}

static void submit_segs(DpDisk *disk, DpReq *req, const DpSeg *seg,
                        unsigned n)
{
    req->head = dp_chain(disk, seg, n);
    g_assert_null(disk->by_head[req->head]);
    disk->by_head[req->head] = req;
    req->in_flight = true;
    req->done = false;
    disk->pending++;
    dp_avail(disk, req->head);
}

void dp_submit(DpDisk *disk, DpReq *req)
{
    DpFraming framing = framing_for(disk, req->framing);
    g_autofree DpSeg *seg = g_new(DpSeg, 8 + req->pieces);
    unsigned n;

    write_head(disk, req);
    n = req->framing == DP_MERGED ? build_merged(disk, req, seg)
                                  : build_segs(req, seg);
    switch (framing) {
    case DP_INDIRECT:
    case DP_INDIRECT_WRITE:
    case DP_SHUFFLED:
        seg[0] = build_table(disk, req, seg, n, framing);
        n = 1;
        break;
    case DP_HALF_INDIRECT:
        seg[1] = build_table(disk, req, seg + 1, n - 1, framing);
        n = 2;
        break;
    default:
        break;
    }

    submit_segs(disk, req, seg, n);
}

void dp_submit_chain(DpDisk *disk, DpReq *req, const DpSeg *seg, unsigned n)
{
    write_head(disk, req);
    submit_segs(disk, req, seg, n);
}

/*
 * Who looks in vain goes through the main loop: otherwise a test that waits
 * would take a CPU from the threads that it waits for.
 */
static bool message_came(DpVm *vm, uint64_t addr, uint32_t data)
{
    return dp_ram_readl(vm, addr) == data ||
           (vm->ram && qtest_readl(vm->qts, addr) == data);
}

bool dp_irq(DpDisk *disk)
{
    QTestState *qts = disk->vm->qts;
    bool irq;

    if (disk->no_msix) {
        irq = disk->vdev->bus->get_queue_isr_status(disk->vdev, disk->vq);
    } else if (disk->vm->kvm) {
        irq = dp_kvm_irq(disk->vm, disk->vector, &disk->irqs_seen);
    } else {
        irq = message_came(disk->vm, disk->vqpci->msix_addr,
                           disk->vqpci->msix_data);
        if (irq) {
            qtest_writel(qts, disk->vqpci->msix_addr, 0);
        }
    }
    disk->irqs += irq;
    return irq;
}

bool dp_config_irq(DpDisk *disk)
{
    QTestState *qts = disk->vm->qts;

    if (disk->vm->kvm) {
        return dp_kvm_irq(disk->vm, disk->config_vector,
                          &disk->config_irqs_seen);
    }
    if (qtest_readl(qts, disk->pci->config_msix_addr) !=
        disk->pci->config_msix_data) {
        return false;
    }
    qtest_writel(qts, disk->pci->config_msix_addr, 0);
    return true;
}

void dp_wait_config_irq(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    if (disk->no_msix) {
        qvirtio_wait_config_isr(disk->vdev,
                                DP_HANG_SECONDS * G_TIME_SPAN_SECOND);
        return;
    }
    while (!dp_config_irq(disk)) {
        dp_check_deadline(deadline, "a configuration change interrupt");
    }
}

/* covers: BLKR-2, BLKR-3, SPLIT-9: nothing beside the status byte changes */
static void check_head(DpDisk *disk, DpReq *req)
{
    uint8_t got[HEAD_BYTES], want[HEAD_BYTES];

    req->status = dp_ram_readb(disk->vm, req->status_addr);
    head_image(req, req->status_at ||
                    (req->framing == DP_MERGED && req->to_guest) ?
                    DP_NO_STATUS : req->status, want);
    dp_ram_read(disk->vm, req->page, got, sizeof(got));
    g_assert_cmpmem(got, sizeof(got), want, sizeof(want));
    g_assert_cmpuint(req->status, !=, DP_NO_STATUS);
}

static void count_request(DpDisk *disk, const DpReq *req)
{
    switch (req->type) {
    case VIRTIO_BLK_T_IN:
        disk->reads++;
        break;
    case VIRTIO_BLK_T_OUT:
        disk->writes++;
        break;
    default:
        disk->others++;
        break;
    }
}

/*
 * covers: SPLIT-52, PACK-56: what was skipped was used in full, and so was
 * read without an error
 */
static uint32_t full_length(const DpReq *req)
{
    g_assert_true(!req->to_guest || req->status == VIRTIO_BLK_S_OK);
    return req->to_guest ? req->len + 1 : 1;
}

static bool take_used(DpDisk *disk)
{
    uint16_t head;
    uint32_t len;
    DpReq *req;

    if (!dp_take_used(disk, &head, &len)) {
        return false;
    }
    req = disk->by_head[head];
    g_assert_nonnull(req);      /* else it was returned twice */
    disk->by_head[head] = NULL;
    disk->pending--;
    req->in_flight = false;
    req->done = true;
    check_head(disk, req);
    req->used_len = len == UINT32_MAX ? full_length(req) : len;
    count_request(disk, req);
    return true;
}

unsigned dp_reap(DpDisk *disk)
{
    unsigned n = 0;

    for (;;) {
        unsigned before = n;

        while (take_used(disk)) {
            n++;
        }
        if (n == before) {
            return n;
        }
        if (disk->vq->event) {
            dp_set_event(disk, 0, 1);
        }
    }
}

void dp_wait(DpDisk *disk, DpReq *req)
{
    gint64 deadline = dp_deadline();

    while (!req->done) {
        if (dp_irq(disk)) {
            dp_reap(disk);
        }
        dp_check_deadline(deadline, "the interrupt of a request");
    }
}

void dp_wait_all(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (disk->pending) {
        if (dp_irq(disk)) {
            dp_reap(disk);
        }
        dp_check_deadline(deadline, "the interrupts of requests");
    }
}

void dp_poll(DpDisk *disk, DpReq *req)
{
    gint64 deadline = dp_deadline();

    while (!req->done) {
        dp_reap(disk);
        dp_check_deadline(deadline, "the used ring");
    }
}

void dp_poll_all(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (disk->pending) {
        take_used(disk);
        dp_check_deadline(deadline, "the used ring");
    }
}

uint8_t dp_run(DpDisk *disk, DpReq *req)
{
    dp_submit(disk, req);
    dp_kick(disk);
    dp_wait(disk, req);
    return req->status;
}

uint8_t dp_rw(DpDisk *disk, uint32_t type, uint64_t sector, uint32_t len,
              uint32_t seed)
{
    DpReq *req = dp_req(disk, type, sector, len);
    uint8_t status;

    if (type == VIRTIO_BLK_T_OUT) {
        dp_req_fill(disk, req, seed);
    }
    status = dp_run(disk, req);
    if (type == VIRTIO_BLK_T_IN && status == VIRTIO_BLK_S_OK) {
        g_assert_true(dp_req_matches(disk, req, seed));
    }
    dp_req_free(disk, req);
    return status;
}

/* What the plane says of itself */

static char *backend_path(DpVm *vm, const char *id)
{
    return g_strdup_printf("/machine/peripheral/%s%s", id,
                           vm->no_proxy ? "" : "/virtio-backend");
}

static void read_counters(const QDict *queue, DpInfo *info)
{
    const struct {
        const char *name;
        int64_t *value;
    } counters[] = {
        { "reads", &info->reads },
        { "writes", &info->writes },
        { "flushes", &info->flushes },
        { "discards", &info->discards },
        { "write-zeroes", &info->write_zeroes },
        { "other", &info->other },
        { "errors", &info->errors },
        { "batches", &info->batches },
        { "kicks", &info->kicks },
        { "polled", &info->polled },
        { "notifications-sent", &info->sent },
        { "notifications-suppressed", &info->suppressed },
        { "merged", &info->merged },
        { "in-flight", &info->in_flight },
        { "completed", &info->completed },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(counters); i++) {
        g_assert_true(qdict_haskey(queue, counters[i].name));
        *counters[i].value = qdict_get_int(queue, counters[i].name);
    }
    if (qdict_haskey(queue, "iothread")) {
        pstrcpy(info->iothread, sizeof(info->iothread),
                qdict_get_str(queue, "iothread"));
    }
    if (qdict_haskey(queue, "moving-to")) {
        pstrcpy(info->moving_to, sizeof(info->moving_to),
                qdict_get_str(queue, "moving-to"));
    }
}

static void read_info(DpVm *vm, const char *id, unsigned queue, DpInfo *info)
{
    g_autofree char *path = backend_path(vm, id);
    QDict *rsp, *dict;
    QListEntry *entry;
    QList *queues;

    memset(info, 0, sizeof(*info));
    rsp = qtest_qmp(vm->qts, "{'execute': 'qom-get', 'arguments': {"
                    " 'path': %s, 'property': 'x-data-plane-info' }}", path);
    g_assert_true(qdict_haskey(rsp, "return"));
    dict = qdict_get_qdict(rsp, "return");
    pstrcpy(info->state, sizeof(info->state), qdict_get_str(dict, "state"));
    info->serving = qdict_get_bool(dict, "serving");
    info->starts = qdict_get_int(dict, "starts");
    if (qdict_haskey(dict, "reason")) {
        pstrcpy(info->reason, sizeof(info->reason),
                qdict_get_str(dict, "reason"));
    }
    queues = qdict_get_qlist(dict, "queues");
    info->num_queues = qlist_size(queues);
    QLIST_FOREACH_ENTRY(queues, entry) {
        QDict *of = qobject_to(QDict, qlist_entry_obj(entry));

        if (qdict_get_int(of, "queue") == queue) {
            read_counters(of, info);
        }
    }
    qobject_unref(rsp);
}

void dp_info(DpVm *vm, const char *id, DpInfo *info)
{
    read_info(vm, id, 0, info);
}

void dp_queue_info(DpDisk *queue, DpInfo *info)
{
    read_info(queue->vm, queue->id, queue->index, info);
}

void dp_wait_state(DpVm *vm, const char *id, const char *state)
{
    gint64 deadline = dp_deadline();
    DpInfo info;

    for (;;) {
        dp_info(vm, id, &info);
        if (!strcmp(info.state, state)) {
            return;
        }
        dp_check_deadline(deadline, state);
    }
}

static void wait_in_flight(DpVm *vm, const char *id, unsigned queue, int64_t n)
{
    gint64 deadline = dp_deadline();
    DpInfo info;

    for (;;) {
        read_info(vm, id, queue, &info);
        if (info.in_flight == n) {
            return;
        }
        dp_check_deadline(deadline, "requests to be in flight");
    }
}

void dp_wait_in_flight(DpVm *vm, const char *id, int64_t n)
{
    wait_in_flight(vm, id, 0, n);
}

void dp_queue_wait_in_flight(DpDisk *queue, int64_t n)
{
    wait_in_flight(queue->vm, queue->id, queue->index, n);
}

void dp_assert_mode(DpVm *vm, const DpMode *mode)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    if (mode->plane) {
        g_assert_cmpstr(info.reason, ==, "");
        g_assert_cmpstr(info.state, ==, "started");
    }
    g_assert_cmpint(info.serving, ==, mode->plane);
    if (mode->plane && strstr(mode->props, "iothread=io0")) {
        g_assert_cmpstr(info.iothread, ==, "io0");
    }
}

void dp_assert_as_asked(DpDisk *disk)
{
    dp_assert_mode(disk->vm, disk->vm->mode);
}

/* Keeping requests in flight */

static void set_throttle(DpDisk *disk, const char *group, int iops, int bps)
{
    g_autofree char *path = backend_path(disk->vm, disk->id);

    dp_qmp_ok(disk->vm, NULL, "{'execute': 'block_set_io_throttle',"
              " 'arguments': { 'id': %s, 'group': %s, 'iops': %d,"
              " 'iops_rd': 0, 'iops_wr': 0, 'bps': %d, 'bps_rd': 0,"
              " 'bps_wr': 0 }}", path, group, iops, bps);
}

void dp_throttle(DpDisk *disk, const char *group, int iops)
{
    set_throttle(disk, group, iops, 0);
}

void dp_hold(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 0, DP_SECTOR);

    /* With KVM the clock goes on, and a byte per second is as good. */
    set_throttle(disk, disk->id, 1, 1);
    g_assert_cmpint(dp_run(disk, req), ==, VIRTIO_BLK_S_OK);
    dp_req_free(disk, req);
}

void dp_release(DpDisk *disk)
{
    dp_throttle(disk, disk->id, 0);
}

/* The load */

#define LOAD_BYTES 4096

typedef struct DpSlot {
    DpDisk *queue[2];       /* to write through, and to read through */
    DpReq *req;
    uint32_t version;       /* last one written; 0: none yet */
    bool reading;
    bool busy;              /* a request was sent and not yet checked */
    bool unknown;           /* a reset may have cut a write short */
} DpSlot;

struct DpLoad {
    DpDisk *disk;
    DpDisk **queue;
    unsigned num_queues;
    unsigned depth;
    uint64_t ops;
    DpSlot slot[];
};

static DpLoad *load_new(DpDisk **queue, unsigned num_queues, unsigned depth,
                        uint64_t first)
{
    DpLoad *load = g_malloc0(sizeof(*load) +
                             num_queues * depth * sizeof(DpSlot));

    load->disk = queue[0];
    load->queue = g_memdup2(queue, num_queues * sizeof(*queue));
    load->num_queues = num_queues;
    load->depth = num_queues * depth;
    for (unsigned i = 0; i < load->depth; i++) {
        DpSlot *slot = &load->slot[i];
        /* Neighbours in pairs, so that some can be merged */
        uint64_t at = first + (i / 2) * 512 + (i % 2) * 8;

        slot->queue[0] = queue[i / depth];
        slot->queue[1] = queue[(i / depth + 1) % num_queues];
        slot->req = dp_req(queue[0], VIRTIO_BLK_T_IN, at, LOAD_BYTES);
        slot->req->framing =
            queue[0]->vq->indirect && i % 3 == 2 ? DP_INDIRECT : DP_DIRECT;
    }
    return load;
}

DpLoad *dp_load_new(DpDisk *disk, unsigned depth, uint64_t first)
{
    return load_new(&disk, 1, depth, first);
}

DpLoad *dp_load_new_queues(DpDisk *disk, unsigned depth, uint64_t first)
{
    g_autofree DpDisk **used = g_new0(DpDisk *, disk->queues->len);
    unsigned n = 0;

    for (unsigned i = 0; i < disk->queues->len; i++) {
        DpDisk *queue = nth_queue(disk, i);

        if (!queue->unused) {
            used[n++] = queue;
        }
    }
    return load_new(used, n, depth, first);
}

static void load_send(DpLoad *load, DpSlot *slot)
{
    DpReq *req = slot->req;

    slot->reading = !slot->reading;
    if (!slot->reading || !slot->version) {
        slot->reading = false;
        slot->version++;
        req->type = VIRTIO_BLK_T_OUT;
        req->to_guest = false;
        slot->unknown = false;
        dp_req_fill(load->disk, req, slot->version);
    } else {
        req->type = VIRTIO_BLK_T_IN;
        req->to_guest = true;
        dp_ram_set(load->disk->vm, req->data, 0, LOAD_BYTES);
    }
    req->done = false;
    slot->busy = true;
    dp_submit(slot->queue[slot->reading], req);
}

static void load_check(DpLoad *load, DpSlot *slot)
{
    DpReq *req = slot->req;

    g_assert_cmpint(req->status, ==, VIRTIO_BLK_S_OK);
    if (slot->reading) {
        g_assert_true(dp_req_matches(load->disk, req, slot->version));
    }
    req->done = false;
    slot->busy = false;
    load->ops++;
}

static void load_take(DpLoad *load)
{
    for (unsigned i = 0; i < load->depth; i++) {
        if (load->slot[i].req->done) {
            load_check(load, &load->slot[i]);
        }
    }
}

static void load_kick(DpLoad *load)
{
    for (unsigned i = 0; i < load->num_queues; i++) {
        dp_kick(load->queue[i]);
    }
}

void dp_load_send(DpLoad *load)
{
    load_take(load);
    for (unsigned i = 0; i < load->depth; i++) {
        if (!load->slot[i].req->in_flight) {
            load_send(load, &load->slot[i]);
        }
    }
    load_kick(load);
}

/* Take what the queues with an interrupt have used */
static bool load_irqs(DpLoad *load)
{
    bool any = false;

    for (unsigned i = 0; i < load->num_queues; i++) {
        if (dp_irq(load->queue[i])) {
            dp_reap(load->queue[i]);
            any = true;
        }
    }
    return any;
}

void dp_load_run(DpLoad *load, unsigned ops)
{
    uint64_t target = load->ops + ops;
    gint64 deadline = dp_deadline();

    while (load->ops < target) {
        dp_load_send(load);
        while (!load_irqs(load)) {
            dp_check_deadline(deadline, "an interrupt of the load");
        }
        load_take(load);
    }
}

void dp_load_reset(DpLoad *load)
{
    for (unsigned i = 0; i < load->depth; i++) {
        DpSlot *slot = &load->slot[i];

        g_assert_false(slot->req->in_flight);
        slot->req->done = false;
        if (slot->busy) {
            /* Makes the next request a write */
            slot->reading = true;
            slot->unknown = true;
            slot->busy = false;
        }
    }
}

void dp_load_forget_tables(DpLoad *load)
{
    for (unsigned i = 0; i < load->depth; i++) {
        load->slot[i].req->framing = DP_DIRECT;
    }
}

static void load_drain(DpLoad *load)
{
    for (unsigned i = 0; i < load->num_queues; i++) {
        dp_wait_all(load->queue[i]);
    }
    load_take(load);
}

void dp_load_abandon(DpLoad *load)
{
    for (unsigned i = 0; i < load->depth; i++) {
        dp_req_free(load->disk, load->slot[i].req);
    }
    g_free(load->queue);
    g_free(load);
}

void dp_load_finish(DpLoad *load)
{
    load_drain(load);
    for (unsigned i = 0; i < load->depth; i++) {
        DpSlot *slot = &load->slot[i];

        if (slot->version && !slot->unknown) {
            slot->reading = false;
            load_send(load, slot);
            g_assert_true(slot->reading);
        }
    }
    load_kick(load);
    load_drain(load);
    dp_load_abandon(load);
}

/* QMP */

static QDict *G_GNUC_PRINTF(3, 0)
vqmp(DpVm *vm, DpLoad *load, const char *fmt, va_list ap)
{
    qtest_qmp_vsend(vm->qts, fmt, ap);
    if (load) {
        dp_load_run(load, 3 * load->depth);
    }
    return qtest_qmp_receive(vm->qts);
}

QDict *dp_qmp(DpVm *vm, DpLoad *load, const char *fmt, ...)
{
    QDict *rsp;
    va_list ap;

    va_start(ap, fmt);
    rsp = vqmp(vm, load, fmt, ap);
    va_end(ap);
    return rsp;
}

void dp_qmp_ok(DpVm *vm, DpLoad *load, const char *fmt, ...)
{
    QDict *rsp;
    va_list ap;

    va_start(ap, fmt);
    rsp = vqmp(vm, load, fmt, ap);
    va_end(ap);
    if (!qdict_haskey(rsp, "return")) {
        QDict *error = qdict_get_qdict(rsp, "error");

        g_error("%s: failed with \"%s\"", fmt, qdict_get_str(error, "desc"));
    }
    qobject_unref(rsp);
}

void dp_qmp_error(DpVm *vm, DpLoad *load, const char *text,
                  const char *fmt, ...)
{
    const char *desc;
    QDict *rsp;
    va_list ap;

    va_start(ap, fmt);
    rsp = vqmp(vm, load, fmt, ap);
    va_end(ap);
    g_assert_true(qdict_haskey(rsp, "error"));
    desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
    if (!strstr(desc, text)) {
        g_error("%s: failed with \"%s\", not with \"%s\"", fmt, desc, text);
    }
    qobject_unref(rsp);
}

void dp_stop(DpVm *vm)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'stop'}");
}

void dp_cont(DpVm *vm)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'cont'}");
}

void dp_resize(DpVm *vm, DpLoad *load, int64_t size)
{
    dp_qmp_ok(vm, load, "{'execute': 'block_resize', 'arguments': {"
              " 'node-name': 'n0', 'size': %" PRId64 "}}", size);
}

void dp_eject(DpVm *vm)
{
    qtest_outl(vm->qts, PCIHP_EJECT, 1 << DP_SLOT);
    qtest_qmp_eventwait(vm->qts, "DEVICE_DELETED");
}

void dp_unplug(DpVm *vm)
{
    qtest_qmp_device_del_send(vm->qts, "d0");
    dp_eject(vm);
}

/* Threads */

pid_t dp_iothread_tid(DpVm *vm, const char *id)
{
    QDict *rsp = dp_qmp(vm, NULL, "{'execute': 'query-iothreads'}");
    const QListEntry *entry;
    pid_t tid = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *thread = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(thread, "id"), id)) {
            tid = qdict_get_int(thread, "thread-id");
        }
    }
    qobject_unref(rsp);
    g_assert_cmpint(tid, >, 0);
    return tid;
}

void dp_iothread_add(DpVm *vm, const char *id)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'object-add', 'arguments': {"
              " 'qom-type': 'iothread', 'id': %s}}", id);
}

void dp_iothread_del(DpVm *vm, const char *id)
{
    dp_qmp_ok(vm, NULL, "{'execute': 'object-del', 'arguments': {'id': %s}}",
              id);
}

void dp_wait_thread_gone(DpVm *vm, pid_t tid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task/%d",
                                            (int)qtest_pid(vm->qts), (int)tid);
    gint64 deadline = dp_deadline();

    while (g_file_test(path, G_FILE_TEST_EXISTS)) {
        dp_check_deadline(deadline, "an IOThread to go");
    }
}

pid_t dp_freeze(DpVm *vm, const char *iothread)
{
    pid_t tid = dp_iothread_tid(vm, iothread);
    int status;

    if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0) {
        g_assert_cmpint(errno, ==, EPERM);
        g_test_skip("the host does not let us stop a thread");
        return 0;
    }
    g_assert_cmpint(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL), ==, 0);
    g_assert_cmpint(waitpid(tid, &status, __WALL), ==, tid);
    g_assert_true(WIFSTOPPED(status));
    return tid;
}

void dp_thaw(pid_t tid)
{
    g_assert_cmpint(ptrace(PTRACE_DETACH, tid, NULL, NULL), ==, 0);
}

/* Test registration */

bool dp_has_ring(const DpMode *mode, DpRings rings)
{
    switch (rings) {
    case DP_SPLIT_RING:
        return !mode->packed;
    case DP_PACKED_RING:
        return mode->packed;
    default:
        return true;
    }
}

static void test_without_kvm(const void *opaque)
{
    g_test_skip(dp_kvm_refusal());
}

typedef struct Run {
    const DpTest *test;
    const DpMode *mode;
} Run;

static DpVm *test_vm(const DpTest *test, const DpMode *mode)
{
    const char *props = test->props ?: "";
    DpVm *vm;

    if (test->vm) {
        vm = test->vm(mode);
        vm->mode = mode;
        return vm;
    }
    return test->null ? dp_vm_null(mode, test->null, props)
                      : dp_vm_file(mode, DP_IMAGE_SIZE, props);
}

static void run_test(const void *opaque)
{
    const Run *run = opaque;
    const DpTest *test = run->test;
    DpDisk *disk;
    DpVm *vm;

    if (test->own_vm) {
        test->own_vm(run->mode);
        return;
    }
    vm = test_vm(test, run->mode);
    disk = dp_disk_probe(vm, "d0", DP_SLOT);
    if (!test->idle) {
        dp_disk_start(disk, test->features ?: DP_F_ALL);
    }
    test->fn(disk);
    if (!test->ends_unserved) {
        dp_assert_as_asked(disk);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

void dp_add_row(const char *group, const DpTest *test, const DpMode *mode)
{
    g_autofree char *path = g_strdup_printf("/virtio-blk-dataplane/%s/%s/%s",
                                            group, test->name, mode->name);
    Run *run = g_new(Run, 1);

    *run = (Run) { test, mode };
    qtest_add_data_func_full(path, run, dp_kvm_wanted() && dp_kvm_refusal() ?
                                        test_without_kvm : run_test, g_free);
}

void dp_add_table(const char *group, const DpTest *tests, unsigned n,
                  bool plane_only)
{
    for (unsigned i = 0; i < n; i++) {
        for (unsigned j = 0; dp_modes[j]; j++) {
            if ((dp_modes[j]->plane || !plane_only) &&
                dp_has_ring(dp_modes[j], tests[i].rings)) {
                dp_add_row(group, &tests[i], dp_modes[j]);
            }
        }
    }
}
