/*
 * Requests with buffers that are not in RAM
 *
 * Such buffers are registers that remember what is written, of QEMU's test
 * device for PCs, or registers that stop or unplug the disk when the disk
 * writes there.  QEMU copies at most as many bytes of them at a time as the
 * property x-max-bounce-buffer-size says.  May know that the main loop makes
 * these accesses, on QEMU's own path as well, and that a command of the monitor
 * keeps it from that.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/pci_regs.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define W VRING_DESC_F_WRITE

/* The test device's registers */
#define REGS 0xff000000ull
#define REGS_SIZE 0x10000
#define CANARY 0xa5
#define DATA REGS
#define HEADER (REGS + 0x8000)
#define STATUS (REGS + 0x9000)

#define LIMIT 4096              /* of copies at a time, unless it is set */

#define TESTDEV " -device pc-testdev"

static DpVm *vm_with_regs(const DpMode *mode, const char *props)
{
    g_autofree char *more = g_strdup_printf("%s" TESTDEV, props);

    return dp_vm_file(mode, DP_IMAGE_SIZE, more);
}

static void fill_regs(DpVm *vm)
{
    qtest_memset(vm->qts, REGS, CANARY, REGS_SIZE);
}

static uint8_t *regs(DpVm *vm)
{
    uint8_t *bytes = g_malloc(REGS_SIZE);

    qtest_memread(vm->qts, REGS, bytes, REGS_SIZE);
    return bytes;
}

static void assert_canaries(const uint8_t *bytes, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        g_assert_cmphex(bytes[i], ==, CANARY);
    }
}

/* Where parts of a request are; 0: in RAM */
typedef struct Place {
    uint64_t header;
    uint64_t data;
    uint64_t status;
} Place;

static DpReq *req_at(DpDisk *disk, uint32_t type, uint64_t sector, unsigned len,
                     Place place)
{
    DpReq *req = dp_req(disk, type, sector, len);

    req->header_at = place.header;
    req->status_at = place.status;
    req->data = place.data ?: req->data;
    return req;
}

static void show(DpDisk *disk)
{
    dp_expose(disk);
    dp_kick_always(disk);
}

static void run(DpDisk *disk, DpReq *req)
{
    dp_submit(disk, req);
    show(disk);
    dp_poll(disk, req);
    g_assert_cmpint(req->status, ==, OK);
}

static void run_free(DpDisk *disk, DpReq *req)
{
    run(disk, req);
    dp_req_free(disk, req);
}

/* --- each part of a request ------------------------------------------ */

/* What is read arrives, and nothing beside it is written */
static void read_at(DpDisk *disk, Place place, uint64_t sector, unsigned len,
                    uint32_t seed)
{
    DpReq *req = req_at(disk, VIRTIO_BLK_T_IN, sector, len, place);
    g_autofree uint8_t *seen = NULL;
    unsigned from = place.data ? place.data - REGS : 0;

    fill_regs(disk->vm);
    run(disk, req);
    g_assert_cmpuint(req->used_len, ==, len + 1);
    g_assert_true(dp_req_matches(disk, req, seed));
    seen = regs(disk->vm);
    assert_canaries(seen, 0, from);
    assert_canaries(seen, place.data ? from + len : 0, HEADER - REGS);
    assert_canaries(seen, STATUS - REGS + 1, REGS_SIZE);
    dp_req_free(disk, req);
}

static void write_at(DpDisk *disk, Place place, uint64_t sector, unsigned len,
                     uint32_t seed)
{
    DpReq *req = req_at(disk, VIRTIO_BLK_T_OUT, sector, len, place);

    dp_req_fill(disk, req, seed);
    run(disk, req);
    dp_req_free(disk, req);
}

/* covers: E4, G7: header, data and status, one by one and together */
static void test_places(DpDisk *disk)
{
    const unsigned lens[] = { DP_SECTOR, 3 * DP_SECTOR };

    for (unsigned i = 0; i < 8; i++) {
        Place place = {
            .header = i & 1 ? HEADER : 0,
            .data = i & 2 ? DATA + 12 : 0,
            .status = i & 4 ? STATUS : 0,
        };

        for (unsigned j = 0; j < ARRAY_SIZE(lens); j++) {
            uint64_t sector = 16 * i + 8 * j;

            write_at(disk, place, sector, lens[j], i + j);
            read_at(disk, (Place) {}, sector, lens[j], i + j);
            read_at(disk, place, sector, lens[j], i + j);
        }
    }
    dp_assert_works(disk);
}

/* --- how much -------------------------------------------------------- */

static void assert_too_much(DpDisk *disk, unsigned len, Place place)
{
    DpReq *req = req_at(disk, VIRTIO_BLK_T_IN, 0, len, place);

    dp_submit(disk, req);
    show(disk);
    dp_assert_broken(disk);
    dp_disk_reset(disk);
    dp_req_free(disk, req);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
}

/* covers: E4: one byte more than there may be of copies, and as many */
static void test_limit(const DpMode *mode)
{
    DpVm *vm = vm_with_regs(mode, "");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);

    write_at(disk, (Place) { .data = DATA }, 0, LIMIT, 1);
    read_at(disk, (Place) { .data = DATA }, 0, LIMIT, 1);
    if (mode->plane) {
        assert_too_much(disk, LIMIT,
                        (Place) { .data = DATA, .status = STATUS });
        assert_too_much(disk, LIMIT + DP_SECTOR, (Place) { .data = DATA });
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);

    vm = vm_with_regs(mode, ",disable-legacy=on,iommu_platform=on,"
                            "x-max-bounce-buffer-size=8192");
    disk = dp_disk_new(vm, DP_F_ALL);
    write_at(disk, (Place) { .data = DATA }, 0, 2 * LIMIT, 2);
    read_at(disk, (Place) { .data = DATA }, 0, 2 * LIMIT, 2);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

#define MANY 8

/* Requests at all registers in front of the header, and as many in RAM */
static void run_many(DpDisk *disk, uint32_t type)
{
    DpReq *req[2 * MANY];

    for (unsigned i = 0; i < 2 * MANY; i++) {
        Place place = { .data = i % 2 ? 0 : DATA + i / 2 * LIMIT };

        req[i] = req_at(disk, type, i * LIMIT / DP_SECTOR, LIMIT, place);
        if (type == VIRTIO_BLK_T_OUT) {
            dp_req_fill(disk, req[i], i);
        }
        dp_submit(disk, req[i]);
    }
    show(disk);
    for (unsigned i = 0; i < 2 * MANY; i++) {
        dp_poll(disk, req[i]);
        g_assert_cmpint(req[i]->status, ==, OK);
        g_assert_true(dp_req_matches(disk, req[i], i));
        dp_req_free(disk, req[i]);
    }
}

/* covers: E4: more at once than there may be of copies: they take turns */
static void test_many(DpDisk *disk)
{
    for (unsigned round = 0; round < 4; round++) {
        run_many(disk, VIRTIO_BLK_T_OUT);
        fill_regs(disk->vm);
        run_many(disk, VIRTIO_BLK_T_IN);
    }
    dp_assert_works(disk);
}

#define BATCH 40                /* more than are popped before one is parsed */

/*
 * covers: E4: the main loop has mapped one, or two, when the queue is still at
 * work on what was in front of it
 */
static void test_batches(DpDisk *disk)
{
    for (unsigned i = 0; i < BATCH; i++) {
        write_at(disk, (Place) {}, i, DP_SECTOR, i);
    }
    fill_regs(disk->vm);
    for (unsigned round = 0; round < 64; round++) {
        DpReq *req[BATCH];

        for (unsigned i = 0; i < BATCH; i++) {
            bool far = i >= BATCH - 4 || i % 8 == round % 8;

            req[i] = req_at(disk, VIRTIO_BLK_T_IN, i, DP_SECTOR, (Place) {
                .data = far ? DATA + i * DP_SECTOR : 0
            });
            dp_submit(disk, req[i]);
        }
        show(disk);
        for (unsigned i = 0; i < BATCH; i++) {
            dp_poll(disk, req[i]);
            g_assert_cmpint(req[i]->status, ==, OK);
            g_assert_true(dp_req_matches(disk, req[i], i));
            dp_req_free(disk, req[i]);
        }
    }
}

/*
 * covers: E4: what a queue of the disk needs, others have; each in turn has
 * requests in flight when the others begin to wait
 */
static void test_queues(DpDisk *disk)
{
    const unsigned half = LIMIT / 2;    /* too little is left for others */
    DpDisk *queue[3] = { disk };

    for (unsigned i = 1; i < ARRAY_SIZE(queue); i++) {
        queue[i] = dp_disk_queue(disk, i);
    }
    dp_disk_start(disk, DP_F_ALL);
    for (unsigned i = 0; i < MANY; i++) {
        write_at(disk, (Place) {}, i * LIMIT / DP_SECTOR, LIMIT, i);
    }
    fill_regs(disk->vm);
    for (unsigned first = 0; first < ARRAY_SIZE(queue); first++) {
        DpReq *req[ARRAY_SIZE(queue)][2];

        dp_hold(queue[first]);
        for (unsigned i = 0; i < ARRAY_SIZE(queue); i++) {
            DpDisk *q = queue[(first + i) % ARRAY_SIZE(queue)];

            for (unsigned j = 0; j < 2; j++) {
                unsigned n = 2 * i + j;

                req[i][j] = req_at(q, VIRTIO_BLK_T_IN, n * LIMIT / DP_SECTOR,
                                   i ? LIMIT : half,
                                   (Place) { .data = DATA + n * LIMIT });
                dp_submit(q, req[i][j]);
            }
            show(q);
            dp_queue_wait_in_flight(q, i ? 1 : 2);
        }
        dp_release(disk);
        for (unsigned i = 0; i < ARRAY_SIZE(queue); i++) {
            DpDisk *q = queue[(first + i) % ARRAY_SIZE(queue)];

            for (unsigned j = 0; j < 2; j++) {
                dp_poll(q, req[i][j]);
                g_assert_cmpint(req[i][j]->status, ==, OK);
                g_assert_true(dp_req_matches(q, req[i][j], 2 * i + j));
                dp_req_free(q, req[i][j]);
            }
        }
    }
}

/* --- what stops the queue meanwhile ---------------------------------- */

/*
 * Two reads of data and a third in RAM: the first is held below the disk, and
 * has all copies; the second waits for them, and the third behind it.  On
 * QEMU's own path no request waits for copies: there the second is in RAM, too.
 */
typedef struct Held {
    DpDisk *disk;
    DpReq *req[3];
} Held;

static bool is_served(DpVm *vm)
{
    DpInfo info;

    dp_info(vm, "d0", &info);
    return info.serving;
}

/* Until the device, on either path, has taken what it was shown */
static void wait_taken(DpDisk *disk)
{
    gint64 deadline = dp_deadline();

    while (!dp_asks_for_kick(disk)) {
        dp_check_deadline(deadline, "requests to be taken");
    }
}

/* QEMU's own path does not count its requests */
static void wait_in_flight(DpVm *vm, int64_t n)
{
    if (is_served(vm)) {
        dp_wait_in_flight(vm, "d0", n);
    }
}

static void hold_reads(Held *h)
{
    DpDisk *disk = h->disk;
    unsigned far = is_served(disk->vm) ? 2 : 1;

    for (unsigned i = 0; i < ARRAY_SIZE(h->req); i++) {
        write_at(disk, (Place) {}, 64 * i, LIMIT, 70 + i);
    }
    fill_regs(disk->vm);
    dp_hold(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(h->req); i++) {
        h->req[i] = req_at(disk, VIRTIO_BLK_T_IN, 64 * i, LIMIT, (Place) {
            .data = i < far ? DATA + 2 * i * LIMIT : 0
        });
        dp_submit(disk, h->req[i]);
    }
    show(disk);
    if (far == 2) {
        wait_in_flight(disk->vm, 2);
    } else {
        wait_taken(disk);
    }
}

static void check_held(Held *h)
{
    for (unsigned i = 0; i < ARRAY_SIZE(h->req); i++) {
        dp_poll(h->disk, h->req[i]);
        g_assert_cmpint(h->req[i]->status, ==, OK);
        g_assert_true(dp_req_matches(h->disk, h->req[i], 70 + i));
    }
}

static void free_held(Held *h)
{
    dp_req_drop(h->disk, h->req, ARRAY_SIZE(h->req));
}

static void assert_regs_untouched(DpVm *vm)
{
    g_autofree uint8_t *bytes = regs(vm);

    assert_canaries(bytes, 0, REGS_SIZE);
}

/* covers: E4, D6: nothing is written while the VM is stopped, nor lost */
static void test_stop(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Held h = { .disk = disk };
    unsigned in_ram = is_served(vm) ? 0 : 2;

    hold_reads(&h);
    dp_stop(vm);
    assert_regs_untouched(vm);
    g_assert_cmpuint(dp_count_used(disk), ==, in_ram);
    dp_release(disk);
    dp_cont(vm);
    check_held(&h);
    free_held(&h);
    wait_in_flight(vm, 0);
    dp_assert_works(disk);
}

/* The first read of sector 800 fails, and stops the machine. */
static DpVm *vm_read_fails(const DpMode *mode)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);

    return dp_vm_start(
        "-blockdev '{\"driver\": \"raw\", \"node-name\": \"n0\","
        " \"file\": {\"driver\": \"blkdebug\", \"image\":"
        " {\"driver\": \"file\", \"filename\": \"%s\"},"
        " \"inject-error\": [{\"event\": \"none\", \"iotype\": \"read\","
        " \"sector\": 800, \"once\": true}]}}' "
        "-device virtio-blk-pci,id=d0,drive=n0,addr=%d,rerror=stop%s" TESTDEV,
        path, DP_SLOT, mode->props);
}

/* covers: E4, M9: the error policy parks a request, which is tried again */
static void test_error(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    DpReq *req;

    write_at(disk, (Place) {}, 800, LIMIT, 5);
    fill_regs(vm);
    req = req_at(disk, VIRTIO_BLK_T_IN, 800, LIMIT, (Place) { .data = DATA });
    dp_submit(disk, req);
    show(disk);
    qtest_qmp_eventwait(vm->qts, "STOP");
    assert_regs_untouched(vm);
    dp_cont(vm);
    dp_poll(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    g_assert_true(dp_req_matches(disk, req, 5));
    dp_req_free(disk, req);
    dp_assert_works(disk);
}

/* covers: E4, STAT-10: a driver that has reset the device gets nothing more */
static void test_reset(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Held h = { .disk = disk };

    for (unsigned i = 0; i < 3; i++) {
        hold_reads(&h);
        dp_disk_reset(disk);
        dp_release(disk);
        free_held(&h);
        dp_disk_start(disk, DP_F_ALL);
        dp_assert_works(disk);
        assert_regs_untouched(vm);
        wait_in_flight(vm, 0);
    }
}

/* covers: E4, RST-6: same for a queue */
static void test_queue_reset(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Held h = { .disk = disk };

    for (unsigned i = 0; i < 3; i++) {
        hold_reads(&h);
        dp_queue_reset(disk);
        dp_release(disk);
        free_held(&h);
        dp_queue_restart(disk);
        dp_assert_works(disk);
        assert_regs_untouched(vm);
        wait_in_flight(vm, 0);
    }
}

static void set_command(QPCIDevice *pci, uint16_t set, uint16_t clear)
{
    uint16_t command = qpci_config_readw(pci, PCI_COMMAND);

    qpci_config_writew(pci, PCI_COMMAND, (command & ~clear) | set);
}

/* covers: E4, E7: no access without bus mastering, and another life after it */
static void test_bus_master(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Held h = { .disk = disk };
    QPCIDevice *pci = disk->pci->pdev;

    hold_reads(&h);
    set_command(pci, 0, PCI_COMMAND_MASTER);
    dp_release(disk);
    assert_regs_untouched(vm);
    set_command(pci, PCI_COMMAND_MASTER, 0);
    dp_disk_start(disk, DP_F_ALL);
    assert_regs_untouched(vm);
    free_held(&h);
    wait_in_flight(vm, 0);
    dp_assert_works(disk);
}

/* covers: E4: unplugged with requests that are at the main loop */
static void test_unplug(DpDisk *disk)
{
    DpVm *vm = disk->vm;
    Held h = { .disk = disk };

    hold_reads(&h);
    dp_unplug(vm);
    assert_regs_untouched(vm);
    free_held(&h);
}

/* --- accesses that meet the disk itself ------------------------------ */

#define PCIEXBAR 0x60           /* in the configuration of the host bridge */
#define ECAM 0xb0000000ull
#define PORT_DEVFN QPCI_DEVFN(3, 0)
#define DISK_BUS 1
#define DISK_SLOT (DISK_BUS << 5)   /* number it from that of bus 0 on */

/* Configuration space as memory */
static uint64_t ecam(unsigned bus, unsigned devfn, int offset)
{
    return ECAM + (bus << 20) + (devfn << 12) + offset;
}

/* The disk is on a port whose slot the guest can switch off by a register */
static DpDisk *disk_at_port(const DpMode *mode, const char *serial)
{
    g_autofree char *path = dp_image("disk.img", DP_IMAGE_SIZE);
    DpVm *vm = dp_vm_start(
        "-machine q35 "
        "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off "
        "-device pcie-root-port,id=p0,bus=pcie.0,addr=3,chassis=1 "
        "-blockdev file,node-name=f0,filename=%s "
        "-blockdev raw,node-name=n0,file=f0 "
        "-device virtio-blk-pci,id=d0,bus=p0,drive=n0,serial=%s%s",
        path, serial, mode->props);
    QPCIDevice *host = qpci_device_find(vm->bus, QPCI_DEVFN(0, 0));
    DpDisk *disk;

    qpci_config_writel(host, PCIEXBAR, ECAM | 1);
    g_free(host);
    dp_open_port(vm, PORT_DEVFN, DISK_BUS);
    disk = dp_disk_probe(vm, "d0", DISK_SLOT);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    return disk;
}

/* The disk writes its name, and zeroes behind it, to an address */
static DpReq *send_name(DpDisk *disk, uint64_t addr)
{
    DpReq *req = req_at(disk, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES,
                        (Place) { .data = addr });

    dp_submit(disk, req);
    show(disk);
    return req;
}

static uint64_t status_register(DpDisk *disk)
{
    return disk->pci->bar.addr + disk->pci->common_cfg_offset +
           offsetof(struct virtio_pci_common_cfg, device_status);
}

/*
 * covers: E4, G7, D1: the disk writes to its own registers, where its requests
 * are submitted and where they complete; it has no effect
 */
static void test_own_registers(DpDisk *disk)
{
    uint64_t status = status_register(disk);

    for (unsigned i = 0; i < 4; i++) {
        DpReq *req = send_name(disk, status - 4 * i);

        dp_poll(disk, req);
        dp_req_free(disk, req);
        run_free(disk, req_at(disk, VIRTIO_BLK_T_IN, 0, DP_SECTOR,
                              (Place) { .data = status - 4 * i }));
        dp_assert_works(disk);
    }
}

static void wait_stopped(DpVm *vm)
{
    gint64 deadline = dp_deadline();

    while (is_served(vm)) {
        dp_check_deadline(deadline, "the disk to be stopped");
    }
}

/* covers: E4, E7: the disk takes its own bus mastering away */
static void test_own_command(const DpMode *mode)
{
    DpDisk *disk = disk_at_port(mode, "");
    DpVm *vm = disk->vm;
    QPCIDevice *pci = disk->pci->pdev;

    for (unsigned i = 0; i < 3; i++) {
        /* Its last two bytes; those before them change nothing. */
        DpReq *req = send_name(disk, ecam(DISK_BUS, 0, PCI_COMMAND + 2 -
                                                       VIRTIO_BLK_ID_BYTES));
        gint64 deadline = dp_deadline();

        while (qpci_config_readw(pci, PCI_COMMAND) & PCI_COMMAND_MASTER) {
            dp_check_deadline(deadline, "the command register to be written");
        }
        wait_stopped(vm);
        set_command(pci, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY, 0);
        dp_disk_start(disk, DP_F_ALL);
        dp_req_free(disk, req);
        dp_assert_works(disk);
        wait_in_flight(vm, 0);
    }
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

/* The register is written and the bus is reset in one go. */
static void wait_bus_reset(DpVm *vm)
{
    QPCIDevice *port = qpci_device_find(vm->bus, PORT_DEVFN);
    gint64 deadline = dp_deadline();

    while (!(qpci_config_readw(port, PCI_BRIDGE_CONTROL) &
             PCI_BRIDGE_CTL_BUS_RESET)) {
        dp_check_deadline(deadline, "the bus to be reset");
    }
    g_free(port);
}

/* covers: E4, STAT-13: the disk resets the bus that it is on */
static void test_own_bus(const DpMode *mode)
{
    DpDisk *disk = disk_at_port(mode, "@");   /* PCI_BRIDGE_CTL_BUS_RESET */
    DpVm *vm = disk->vm;
    DpReq *req[3];

    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        req[i] = send_name(disk, ecam(0, PORT_DEVFN, PCI_BRIDGE_CONTROL));
    }
    wait_bus_reset(vm);
    wait_in_flight(vm, 0);
    dp_req_drop(disk, req, ARRAY_SIZE(req));
    dp_disk_free(disk);

    disk = dp_disk_probe(vm, "d0", DISK_SLOT);
    dp_disk_start(disk, DP_F_ALL);
    dp_assert_works(disk);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

static unsigned slot_control(DpVm *vm)
{
    QPCIDevice *port = qpci_device_find(vm->bus, PORT_DEVFN);
    uint8_t cap = qpci_find_capability(port, PCI_CAP_ID_EXP, 0);

    g_assert_cmpint(cap, !=, 0);
    g_free(port);
    return cap + PCI_EXP_SLTCTL;
}

/* covers: E4, M6: the disk unplugs itself, with others in flight */
static void test_own_slot(const DpMode *mode)
{
    /* The slot's power and its light off */
    DpDisk *disk = disk_at_port(mode, "A\a");
    DpVm *vm = disk->vm;
    DpReq *held[4], *req[3];

    dp_hold(disk);
    for (unsigned i = 0; i < ARRAY_SIZE(held); i++) {
        held[i] = dp_req(disk, VIRTIO_BLK_T_OUT, 8 * i, DP_SECTOR);
        dp_submit(disk, held[i]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(req); i++) {
        req[i] = send_name(disk, ecam(0, PORT_DEVFN, slot_control(vm)));
    }
    qtest_qmp_eventwait(vm->qts, "DEVICE_DELETED");
    dp_qmp_ok(vm, NULL, "{'execute': 'query-block'}");
    dp_req_drop(disk, held, ARRAY_SIZE(held));
    dp_req_drop(disk, req, ARRAY_SIZE(req));
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "places", test_places, .props = TESTDEV },
        { "limit", .own_vm = test_limit },
        { "stop", test_stop, .props = TESTDEV },
        { "error", test_error, .vm = vm_read_fails },
        { "reset", test_reset, .props = TESTDEV },
        { "queue-reset", test_queue_reset, .props = TESTDEV },
        { "bus-master", test_bus_master, .props = TESTDEV },
        { "unplug", test_unplug, .props = TESTDEV, .ends_unserved = true },
        { "own-registers", test_own_registers, .props = TESTDEV },
        { "own-command", .own_vm = test_own_command },
        { "own-bus", .own_vm = test_own_bus },
        { "own-slot", .own_vm = test_own_slot },
    };
    static const DpTest plane_tests[] = {
        { "many", test_many, .props = TESTDEV },
        { "batches", test_batches, .props = TESTDEV },
        { "queues", test_queues, .props = ",num-queues=3" TESTDEV,
          .idle = true },
    };

    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_device("pc-testdev") || !qtest_has_machine("q35")) {
        g_test_message("this QEMU has no registers to read a disk into");
        return g_test_run();
    }
    dp_add_table("bounce", tests, ARRAY_SIZE(tests), false);
    dp_add_table("bounce", plane_tests, ARRAY_SIZE(plane_tests), true);
    return g_test_run();
}
