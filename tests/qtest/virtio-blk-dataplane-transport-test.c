/*
 * The data plane of virtio-blk on each transport, with each queue size
 *
 * Every transport is driven through verified I/O, resets and a change of the
 * configuration while the plane serves, and each size that a driver may choose
 * with its ring kept full.  What a transport cannot do must be refused when the
 * device is made, in words that tell the user what to change.  Runs on x86_64
 * and on aarch64.  Knows of the plane what virtio-blk-dataplane-common.h does.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "virtio-blk-dataplane-regs.h"
#include "virtio-blk-dataplane-transport.h"

#define MIB (1024 * 1024)
#define IMAGE_SIZE (4 * MIB)

#define OK VIRTIO_BLK_S_OK

typedef enum Driver {
    MODERN,
    MODERN_INTX,        /* does not switch MSI-X on */
    LEGACY_MSIX,        /* libqos drives a device without modern registers so */
    LEGACY_INTX,
    MMIO,
} Driver;

typedef struct Transport {
    const char *name;
    Driver driver;
    const char *props;  /* of virtio-blk-pci, or arguments for virtio-mmio */
    bool legacy;
    bool has_choice;    /* the driver writes the queue size */
} Transport;

static const Transport transports[] = {
    { "pci-modern", MODERN, ",disable-legacy=on", false, true },
    { "pci-modern-intx", MODERN_INTX, ",disable-legacy=on,vectors=0",
      false, true },
    { "pci-transitional-modern", MODERN,
      ",disable-legacy=off,disable-modern=off", false, true },
    { "pci-transitional-legacy", LEGACY_INTX,
      ",disable-legacy=off,disable-modern=off", true, false },
    { "pci-legacy", LEGACY_MSIX, ",disable-legacy=off,disable-modern=on",
      true, false },
    { "pci-legacy-intx", LEGACY_INTX, ",disable-legacy=off,disable-modern=on",
      true, false },
    { "mmio-legacy", MMIO, "-global virtio-mmio.force-legacy=on",
      true, true },
    { "mmio-modern", MMIO, "-global virtio-mmio.force-legacy=off",
      false, true },
};

/* What a test is given. */
typedef struct Setup {
    const Transport *transport;
    const DpMode *mode;
} Setup;

typedef struct Guest {
    DpVm *vm;
    DpTransport *t;
    DpDisk *disk;
} Guest;

static DpVm *start_mmio(const Setup *setup, const char *path,
                        const char *props)
{
    return dp_mmio_vm("%s -blockdev file,node-name=f0,filename=%s "
                      "-blockdev raw,node-name=n0,file=f0 "
                      "-device virtio-blk-device,id=d0,drive=n0,bus=%s%s%s",
                      setup->transport->props, path, dp_mmio_bus(),
                      setup->mode->props, props);
}

static DpTransport *probe(DpVm *vm, Driver driver)
{
    switch (driver) {
    case MODERN:
    case LEGACY_MSIX:
        return dp_modern_probe(vm, "d0", DP_SLOT, false);
    case MODERN_INTX:
        return dp_modern_probe(vm, "d0", DP_SLOT, true);
    case LEGACY_INTX:
        return dp_legacy_probe(vm, "d0", DP_SLOT);
    default:
        return dp_mmio_probe(vm, "d0");
    }
}

/* The device, which has these properties, too, is found, but not started. */
static Guest guest_new_with(const Setup *setup, const char *props)
{
    Guest g;

    if (setup->transport->driver == MMIO) {
        g_autofree char *path = dp_image("disk.img", IMAGE_SIZE);

        g.vm = start_mmio(setup, path, props);
    } else {
        g_autofree char *all = g_strconcat(setup->transport->props, props,
                                           NULL);

        g.vm = dp_vm_file(setup->mode, IMAGE_SIZE, all);
    }
    g.t = probe(g.vm, setup->transport->driver);
    g.disk = dp_transport_disk(g.t);
    return g;
}

static Guest guest_new(const Setup *setup)
{
    return guest_new_with(setup, "");
}

static void guest_quit(Guest *g)
{
    dp_transport_free(g->t);
    dp_vm_quit(g->vm);
}

/* The features say whether the transport is driven as it was meant to be. */
static void assert_era(Guest *g, const Transport *transport)
{
    bool modern = g->disk->features & (1ull << VIRTIO_F_VERSION_1);

    g_assert_cmpint(modern, ==, !transport->legacy);
}

/* --- what every transport does ---------------------------------------- */

static void run_load(Guest *g, unsigned ops)
{
    DpLoad *load = dp_load_new(g->disk, 8, 1024);

    dp_load_run(load, ops);
    dp_load_finish(load);
}

/* covers: LEG-1, LEG-4, LEG-9, LEG-12, LEG-13, LEG-14, IRQ-15, IRQ-16 */
static void test_io(const void *opaque)
{
    static const uint64_t features[] = { DP_F_PLAIN, DP_F_EVENT, DP_F_ALL };
    const Setup *setup = opaque;
    Guest g = guest_new(setup);
    DpInfo info;

    for (unsigned i = 0; i < ARRAY_SIZE(features); i++) {
        dp_disk_start(g.disk, features[i]);
        assert_era(&g, setup->transport);
        dp_assert_works(g.disk);
        run_load(&g, 96);
        dp_assert_mode(g.vm, setup->mode);
    }
    if (setup->mode->plane) {
        dp_info(g.vm, "d0", &info);
        g_assert_cmpint(info.starts, ==, ARRAY_SIZE(features));
        g_assert_cmpint(info.kicks, >, 0);
        g_assert_cmpint(info.sent, >, 0);
        g_assert_cmpint(info.reads + info.writes, >=,
                        ARRAY_SIZE(features) * 98);
        g_assert_cmpint(info.errors, ==, 0);
    }
    guest_quit(&g);
}

/* covers: LEG-3: requests before DRIVER_OK start the plane, too */
static void test_early(const void *opaque)
{
    const Setup *setup = opaque;
    Guest g = guest_new(setup);

    dp_disk_init(g.disk, DP_F_ALL);
    dp_assert_works(g.disk);
    dp_assert_mode(g.vm, setup->mode);
    qvirtio_set_driver_ok(g.disk->vdev);
    dp_assert_works(g.disk);
    dp_assert_mode(g.vm, setup->mode);
    guest_quit(&g);
}

/* covers: PCI-19, LEG-9, M8: resets with requests in flight */
static void test_reset(const void *opaque)
{
    const Setup *setup = opaque;
    Guest g = guest_new(setup);
    DpLoad *load;

    dp_disk_start(g.disk, DP_F_ALL);
    load = dp_load_new(g.disk, 8, 1024);
    for (unsigned i = 0; i < 6; i++) {
        dp_load_run(load, 24);
        dp_load_send(load);
        if (setup->transport->legacy && i % 2) {
            dp_transport_legacy_reset(g.t);
        }
        dp_disk_reset(g.disk);
        dp_load_reset(load);
        dp_disk_start(g.disk, DP_F_ALL);
        dp_assert_works(g.disk);
        dp_assert_mode(g.vm, setup->mode);
    }
    dp_load_finish(load);
    guest_quit(&g);
}

/* covers: LEG-10, IRQ-3, IRQ-14, IRQ-16, M5: a resize while the plane serves */
static void test_resize(const void *opaque)
{
    static const uint64_t sizes[] = { 8 * MIB, 6 * MIB, 16 * MIB };
    const Setup *setup = opaque;
    Guest g = guest_new(setup);

    dp_disk_start(g.disk, DP_F_ALL);
    dp_assert_works(g.disk);
    g_assert_cmpint(dp_transport_capacity(g.t), ==, IMAGE_SIZE / DP_SECTOR);
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        uint64_t end = sizes[i] / DP_SECTOR;

        dp_qmp_ok(g.vm, NULL, "{'execute': 'block_resize', 'arguments': {"
                  " 'node-name': 'n0', 'size': %" PRIu64 " }}", sizes[i]);
        dp_wait_config_irq(g.disk);
        g_assert_cmpint(dp_transport_capacity(g.t), ==, end);
        g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_OUT, end - 8, 4096, i),
                        ==, OK);
        g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_IN, end - 8, 4096, i),
                        ==, OK);
        g_assert_cmpint(dp_rw(g.disk, VIRTIO_BLK_T_OUT, end, 512, i), !=, OK);
        dp_assert_mode(g.vm, setup->mode);
    }
    guest_quit(&g);
}

/* --- queue sizes ------------------------------------------------------- */

/* Write with @depth requests at once, and read them back with as many. */
static void fill_ring(DpDisk *disk, unsigned depth, DpFraming framing)
{
    g_autofree DpReq **req = g_new(DpReq *, depth);

    for (unsigned round = 0; round < 2; round++) {
        bool reading = round % 2;

        for (unsigned i = 0; i < depth; i++) {
            req[i] = dp_req(disk, reading ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT,
                            i, DP_SECTOR);
            req[i]->framing = framing;
            if (!reading) {
                dp_req_fill(disk, req[i], depth + round);
            }
            dp_submit(disk, req[i]);
        }
        dp_kick(disk);
        dp_wait_all(disk);
        for (unsigned i = 0; i < depth; i++) {
            g_assert_cmpint(req[i]->status, ==, OK);
            g_assert_true(!reading ||
                          dp_req_matches(disk, req[i], depth + round - 1));
            dp_req_free(disk, req[i]);
        }
    }
}

/* The first two move what follows across the end of the ring. */
static void one_size(Guest *g, unsigned num, const DpMode *mode)
{
    g_test_message("%u entries", num);
    dp_transport_set_num(g->t, num);
    dp_disk_start(g->disk, DP_F_ALL);
    g_assert_cmpint(g->disk->num, ==, num);
    fill_ring(g->disk, 1, DP_INDIRECT);
    fill_ring(g->disk, num, DP_INDIRECT);
    dp_assert_mode(g->vm, mode);
    if (num > 1) {
        dp_disk_start(g->disk, DP_F_PLAIN);
        fill_ring(g->disk, num / 2, DP_MERGED);
        dp_assert_mode(g->vm, mode);
    }
}

/* covers: SPLIT-2, PCI-22, PCI-23: each size from 1 to 1024, the ring full */
static void test_sizes(const void *opaque)
{
    const Setup *setup = opaque;
    Guest g = guest_new(setup);

    for (unsigned num = 1; num <= 1024; num *= 2) {
        one_size(&g, num, setup->mode);
    }
    guest_quit(&g);
}

/* What the user sets, and what the driver sees */
typedef struct UserSize {
    const char *props;
    unsigned max;
    unsigned seg_max;
} UserSize;

static const UserSize user_sizes[] = {
    { "", 1024, 254 },
    { ",queue-size=4", 4, 2 },
    { ",queue-size=128", 128, 126 },
    { ",queue-size=1024", 1024, 1022 },
    { ",queue-size=128,x-exact-queue-size=off", 1024, 126 },
    { ",x-exact-queue-size=on", 1024, 254 },
};

/*
 * covers: PCI-20, PCI-24, G5: the driver is offered what the user has set, and
 * cannot have more
 */
static void one_user_size(const Setup *setup, const UserSize *size)
{
    Guest g = guest_new_with(setup, size->props);
    QVirtioDevice *vdev = g.disk->vdev;
    unsigned seg_max_at = offsetof(struct virtio_blk_config, seg_max);

    g_test_message("\"%s\"", size->props);
    dp_disk_init(g.disk, DP_F_ALL);
    g_assert_cmpuint(vdev->bus->config_readl(vdev, seg_max_at), ==,
                     size->seg_max);
    dp_disk_reset(g.disk);
    g_assert_cmpuint(dp_transport_max_num(g.t), ==, size->max);
    if (setup->transport->driver == MODERN) {
        dp_reg_writew(g.disk, DP_CFG(queue_size), 2 * size->max);
        g_assert_cmpuint(dp_reg_readw(g.disk, DP_CFG(queue_size)), ==,
                         size->max);
    }
    if (setup->transport->has_choice) {
        one_size(&g, size->max / 2, setup->mode);
        one_size(&g, size->max, setup->mode);
        dp_disk_reset(g.disk);
        g_assert_cmpuint(dp_transport_max_num(g.t), ==, size->max);
    } else {
        dp_disk_start(g.disk, DP_F_ALL);
        fill_ring(g.disk, size->max, DP_INDIRECT);
        dp_assert_mode(g.vm, setup->mode);
    }
    guest_quit(&g);
}

static void test_user_sizes(const void *opaque)
{
    for (unsigned i = 0; i < ARRAY_SIZE(user_sizes); i++) {
        one_user_size(opaque, &user_sizes[i]);
    }
}

/* Asks for no interrupt, and no leave to notify the device. */
static void run_polled(DpDisk *disk, uint32_t type, uint32_t seed)
{
    DpReq *req = dp_req(disk, type, 8, 4096);

    if (type == VIRTIO_BLK_T_OUT) {
        dp_req_fill(disk, req, seed);
    }
    dp_submit(disk, req);
    dp_expose(disk);
    dp_kick_always(disk);
    dp_poll(disk, req);
    g_assert_cmpint(req->status, ==, OK);
    g_assert_true(dp_req_matches(disk, req, seed));
    dp_req_free(disk, req);
}

/*
 * covers: G5: sizes that the format does not have
 *
 * QEMU's own path takes them, so that is what serves the disk.
 */
static void test_odd_sizes(const void *opaque)
{
    static const unsigned sizes[] = { 3, 6, 100, 1000, 1023 };
    const Setup *setup = opaque;
    Guest g = guest_new(setup);
    DpInfo info;

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        g_test_message("%u entries", sizes[i]);
        dp_transport_set_num(g.t, sizes[i]);
        dp_disk_start(g.disk, DP_F_PLAIN);
        run_polled(g.disk, VIRTIO_BLK_T_OUT, i);
        run_polled(g.disk, VIRTIO_BLK_T_IN, i);
        dp_info(g.vm, "d0", &info);
        g_assert_false(info.serving);
        if (setup->mode->plane) {
            g_autofree char *want = g_strdup_printf(
                "queue size %u is not a power of 2", sizes[i]);

            g_assert_nonnull(strstr(info.reason, want));
        }
        one_size(&g, 8, setup->mode);
    }
    guest_quit(&g);
}

/* --- what is refused --------------------------------------------------- */

#define PCI "-device virtio-blk-pci,drive=n0,"
#define MMIO_BUS "-device virtio-blk-device,drive=n0,bus=virtio-mmio-bus.0,"
#define MMIO_NO_EVENTFD "-global virtio-mmio.ioeventfd=off " MMIO_BUS
#define NEED_EVENTFD "ioeventfd is required for iothread"
#define NO_NOTIFICATION_DATA "notification_data' not found"
#define TWO_MAPPINGS "iothread and iothread-vq-mapping properties cannot be " \
                     "set at the same time"
#define BAD_SIZE "must be a power of 2 (max 1024)"
#define MAPPING "\"iothread-vq-mapping\":[{\"iothread\":\"io1\"}]"

typedef struct Refused {
    const char *name;
    bool mmio;          /* on the machine of dp_mmio_machine() */
    const char *args;
    const char *message;
} Refused;

static const Refused refused[] = {
    { "pci/iothread-without-ioeventfd", false,
      PCI "iothread=io0,ioeventfd=off", NEED_EVENTFD },
    { "pci/private-without-ioeventfd", false,
      PCI "x-data-plane=on,ioeventfd=off", NEED_EVENTFD },
    { "pci/mapping-without-ioeventfd", false,
      "-device '{\"driver\":\"virtio-blk-pci\",\"drive\":\"n0\","
      "\"ioeventfd\":false," MAPPING "}'", NEED_EVENTFD },
    { "pci/iothread-and-mapping", false,
      "-device '{\"driver\":\"virtio-blk-pci\",\"drive\":\"n0\","
      "\"iothread\":\"io0\"," MAPPING "}'", TWO_MAPPINGS },
    { "pci/notification-data", false,
      PCI "iothread=io0,notification_data=on", NO_NOTIFICATION_DATA },
    { "mmio/iothread-without-ioeventfd", true,
      MMIO_NO_EVENTFD "iothread=io0", NEED_EVENTFD },
    { "mmio/private-without-ioeventfd", true,
      MMIO_NO_EVENTFD "x-data-plane=on", NEED_EVENTFD },
    { "pci/queue-size-2", false, PCI "queue-size=2", "must be > 2" },
    { "pci/queue-size-100", false, PCI "queue-size=100", BAD_SIZE },
    { "pci/queue-size-2048", false, PCI "queue-size=2048", BAD_SIZE },
    { "pci/queue-size-65534", false, PCI "queue-size=65534", BAD_SIZE },
    { "mmio/notification-data", true,
      MMIO_BUS "iothread=io0,notification_data=on", NO_NOTIFICATION_DATA },
};

/*
 * One more device, which does not exist, ends QEMU if it takes the first.
 * Devices that are told in JSON come after all others, so this is one.
 */
static void test_refused(const void *opaque)
{
    const Refused *r = opaque;
    g_autofree char *command = g_strdup_printf(
        "%s -M %s -accel qtest -display none -nodefaults "
        "-object iothread,id=io0 -object iothread,id=io1 "
        "-blockdev null-co,node-name=n0 %s "
        "-device '{\"driver\":\"no-such-device\"}'",
        g_getenv("QTEST_QEMU_BINARY"),
        r->mmio ? dp_mmio_machine() :
        !strcmp(qtest_get_arch(), "aarch64") ? "virt -cpu max" : "pc",
        r->args);
    g_autofree char *out = NULL, *err = NULL;
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    int status;

    g_assert_true(g_shell_parse_argv(command, NULL, &argv, NULL));
    g_spawn_sync(NULL, argv, NULL, 0, NULL, NULL, &out, &err, &status, &error);
    g_assert_no_error(error);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    if (!strstr(err, r->message)) {
        g_error("QEMU said \"%s\", not \"%s\"", err, r->message);
    }
}

/* --- machine types ----------------------------------------------------- */

/* What a driver sees on machines of the past is what it always saw there. */
static const struct {
    const char *machine;
    UserSize size;
} machines[] = {
    { "pc-i440fx-10.0", { ",queue-size=64", 64, 62 } },
    { "pc-q35-10.0", { "", 1024, 254 } },
    { "pc-i440fx-9.2", { ",queue-size=64", 1024, 62 } },
    { "pc-i440fx-9.2", { ",queue-size=64,x-exact-queue-size=on", 64, 62 } },
    { "pc-i440fx-4.2", { "", 1024, 126 } },
    { "pc-i440fx-4.2", { ",queue-size=256", 1024, 126 } },
};

static void test_machines(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(machines); i++) {
        const UserSize *size = &machines[i].size;
        DpVm *vm = dp_vm_start("-M %s -blockdev null-co,node-name=n0 "
                               "-device virtio-blk-pci,drive=n0,id=d0,addr=%d"
                               ",disable-legacy=on,iothread=io0%s",
                               machines[i].machine, DP_SLOT, size->props);
        DpDisk *disk = dp_disk_probe(vm, "d0", DP_SLOT);
        unsigned seg_max_at = offsetof(struct virtio_blk_config, seg_max);

        g_test_message("%s%s", machines[i].machine, size->props);
        disk->want_num = size->max;
        dp_disk_start(disk, DP_F_ALL);
        g_assert_cmpuint(disk->num, ==, size->max);
        g_assert_cmpuint(qvirtio_config_readl(disk->vdev, seg_max_at), ==,
                         size->seg_max);
        dp_assert_works(disk);
        dp_disk_reset(disk);
        g_assert_cmpuint(dp_reg_readw(disk, DP_CFG(queue_size)), ==,
                         size->max);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- notifications with data ------------------------------------------- */

/*
 * covers: FEAT-10
 *
 * QEMU 10.0 has no property for VIRTIO_F_NOTIFICATION_DATA, and only vhost
 * devices can have it.  It is not for an eventfd, which carries no data.
 */
static void test_notification_data(const void *opaque)
{
    const Setup *setup = opaque;
    Guest g = guest_new(setup);

    dp_disk_start(g.disk, DP_F_ALL);
    g_assert_cmphex(qvirtio_get_features(g.disk->vdev) & (1ull << 38), ==, 0);
    dp_assert_mode(g.vm, setup->mode);
    guest_quit(&g);
}

/* --- all of them ------------------------------------------------------- */

typedef struct Test {
    const char *name;
    void (*fn)(const void *setup);
    bool legacy_only;
    bool choice_only;
    bool modern_only;
    unsigned modes;     /* so many of those below */
} Test;

static const Test tests[] = {
    { "io", test_io, .modes = 3 },
    { "early", test_early, .legacy_only = true, .modes = 2 },
    { "reset", test_reset, .modes = 2 },
    { "resize", test_resize, .modes = 2 },
    { "sizes", test_sizes, .choice_only = true, .modes = 1 },
    { "user-sizes", test_user_sizes, .modes = 2 },
    { "odd-sizes", test_odd_sizes, .choice_only = true, .modes = 1 },
    { "notification-data", test_notification_data, .modern_only = true,
      .modes = 1 },
};

static const DpMode *const modes[] = {
    &dp_mode_iothread, &dp_mode_off, &dp_mode_private,
};

static bool is_for(const Test *test, const Transport *transport)
{
    return (transport->legacy || !test->legacy_only) &&
           (transport->has_choice || !test->choice_only) &&
           !(transport->legacy && test->modern_only);
}

static void add_tests(const Transport *transport, const Setup *setup)
{
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        for (unsigned j = 0; j < tests[i].modes; j++) {
            g_autofree char *path = g_strdup_printf(
                "/virtio-blk-dataplane/transport/%s/%s/%s", transport->name,
                tests[i].name, modes[j]->name);

            if (is_for(&tests[i], transport)) {
                qtest_add_data_func(path, &setup[j], tests[i].fn);
            }
        }
    }
}

int main(int argc, char **argv)
{
    static Setup setups[ARRAY_SIZE(transports)][ARRAY_SIZE(modes)];

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(transports); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(modes); j++) {
            setups[i][j] = (Setup) { &transports[i], modes[j] };
        }
        add_tests(&transports[i], setups[i]);
    }
    if (!strcmp(qtest_get_arch(), "x86_64")) {
        qtest_add_func("/virtio-blk-dataplane/transport/machines",
                       test_machines);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(refused); i++) {
        g_autofree char *path = g_strdup_printf(
            "/virtio-blk-dataplane/transport/refused/%s", refused[i].name);

        qtest_add_data_func(path, &refused[i], test_refused);
    }
    return g_test_run();
}
