/*
 * The data plane of virtio-blk on each kind of backend
 *
 * A table of block devices as users build them: formats, protocols, filters,
 * ways of submission.  On each of them a driver writes, reads, flushes,
 * discards and writes zeroes while the plane serves; what it reads is compared
 * with what it wrote, and when QEMU has gone the image is read by qemu-img and
 * compared as a whole.  Then the odd ones: disks of no size, of odd sizes, that
 * are read-only, or whose server goes away.
 *
 * Knows of the plane what virtio-blk-dataplane-common.h does.  A row that this
 * host or this build cannot have is skipped, with the reason.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <linux/loop.h>
#include "libqos/libqos.h"
#include "virtio-blk-dataplane-common.h"

#define MIB (1024 * 1024)
#define SIZE (4 * MIB)
#define SECTORS (SIZE / DP_SECTOR)

#define OK VIRTIO_BLK_S_OK
#define IOERR VIRTIO_BLK_S_IOERR

/* --- what a backend needs ---------------------------------------------- */

/* @ in all of these stands for the private directory. */
typedef struct Backend {
    const char *name;
    const char *drivers;    /* that QEMU must have, or NULL */
    const char *create[4];  /* arguments of qemu-img, run in this order */
    const char *args;       /* of QEMU; the disk is node n0 */
    const char *check[3];   /* image options to read the disk's data by */
    bool direct;            /* needs O_DIRECT */
    bool native;            /* needs Linux AIO */
    bool io_uring;
    bool loop;              /* @LOOP is a loop device on disk.img */
    bool nbd;               /* @/nbd.sock is an NBD server of disk.img */
    bool no_zeroes;         /* QEMU aborts when it is to write zeroes */
    bool once;              /* takes each cluster once, and no parts of one */
} Backend;

#define RAW_IMAGE "create -f raw @/disk.img 4M"
#define RAW_CHECK "driver=raw,file.driver=file,file.filename=@/disk.img"
#define CHECK(driver) \
    "driver=" driver ",file.driver=file,file.filename=@/disk." driver
#define FILE_NODE(name, file, more) \
    "-blockdev file,node-name=" name ",filename=@/" file \
    ",discard=unmap" more " "
#define RAW_NODE "-blockdev raw,node-name=n0,file=f0,discard=unmap"

/* A row for a raw file, reached by these options of driver "file" */
#define RAW_FILE(n, options, ...) \
    { .name = "file/" n, .create = { RAW_IMAGE }, \
      .args = FILE_NODE("f0", "disk.img", options) RAW_NODE, \
      .check = { RAW_CHECK }, __VA_ARGS__ }

/* A row for a format, with options for its creation */
#define FORMAT(n, driver, options) \
    { .name = "format/" n, .drivers = driver, \
      .create = { "create -f " driver options " @/disk." driver " 4M" }, \
      .args = FILE_NODE("f0", "disk." driver, "") \
              "-blockdev " driver ",node-name=n0,file=f0,discard=unmap", \
      .check = { CHECK(driver) } }

/* A row for a filter above a raw node "below" */
#define FILTER(n, driver, rest) \
    { .name = "filter/" n, .drivers = driver, .create = { RAW_IMAGE }, \
      .args = FILE_NODE("f0", "disk.img", "") \
              "-blockdev raw,node-name=below,file=f0,discard=unmap " rest, \
      .check = { RAW_CHECK } }

#define LOOP(n, options, ...) \
    { .name = "host-device/" n, .drivers = "host_device", \
      .create = { RAW_IMAGE }, .loop = true, \
      .args = "-blockdev host_device,node-name=f0,filename=@LOOP," \
              "discard=unmap" options " " RAW_NODE, \
      .check = { RAW_CHECK }, __VA_ARGS__ }

static const Backend backends[] = {
    RAW_FILE("threads", ",aio=threads"),
    RAW_FILE("threads-direct", ",aio=threads,cache.direct=on", .direct = true),
    RAW_FILE("native", ",aio=native,cache.direct=on", .direct = true,
             .native = true),
    RAW_FILE("io_uring", ",aio=io_uring", .io_uring = true),
    RAW_FILE("io_uring-direct", ",aio=io_uring,cache.direct=on",
             .direct = true, .io_uring = true),
    RAW_FILE("no-flush", ",cache.no-flush=on"),
    RAW_FILE("batch-limit", ",aio=native,cache.direct=on,aio-max-batch=2",
             .direct = true, .native = true),
    { .name = "file/part-of-it", .create = { "create -f raw @/disk.img 8M" },
      .args = FILE_NODE("f0", "disk.img", "")
              RAW_NODE ",offset=1048576,size=4194304",
      .check = { RAW_CHECK ",offset=1048576,size=4194304" } },

    LOOP("threads", ",aio=threads"),
    LOOP("native", ",aio=native,cache.direct=on", .native = true,
         .direct = true),
    LOOP("io_uring", ",aio=io_uring", .io_uring = true),

    FORMAT("qcow2", "qcow2", ""),
    FORMAT("qcow2-preallocated", "qcow2", " -o preallocation=metadata"),
    FORMAT("qcow2-small-clusters", "qcow2", " -o cluster_size=512"),
    FORMAT("qcow2-subclusters", "qcow2", " -o extended_l2=on"),
    FORMAT("qcow2-lazy-refcounts", "qcow2", " -o lazy_refcounts=on"),
    FORMAT("vmdk", "vmdk", ""),
    FORMAT("vdi", "vdi", ""),
    FORMAT("vhdx", "vhdx", ""),
    FORMAT("vpc", "vpc", " -o force_size=on"),
    FORMAT("qed", "qed", ""),
    FORMAT("qcow", "qcow", ""),
    FORMAT("parallels", "parallels", ""),
    { .name = "format/qcow2-data-file", .drivers = "qcow2",
      .create = { "create -f qcow2 -o data_file=@/disk.img,data_file_raw=on"
                  " @/disk.qcow2 4M" },
      .args = FILE_NODE("f0", "disk.qcow2", "")
              FILE_NODE("f1", "disk.img", "")
              "-blockdev qcow2,node-name=n0,file=f0,data-file=f1,discard=unmap",
      .check = { CHECK("qcow2"), RAW_CHECK } },
    { .name = "format/qcow2-backing", .drivers = "qcow2",
      .create = { "create -f qcow2 @/base.qcow2 4M",
                  "create -f qcow2 -b @/base.qcow2 -F qcow2 @/disk.qcow2" },
      .args = FILE_NODE("f0", "disk.qcow2", "") FILE_NODE("f1", "base.qcow2",
                                                         ",read-only=on")
              "-blockdev qcow2,node-name=b0,file=f1,read-only=on "
              "-blockdev qcow2,node-name=n0,file=f0,backing=b0,discard=unmap",
      .check = { CHECK("qcow2") } },

    FILTER("throttle", "throttle",
           "-object throttle-group,id=tg,x-iops-total=1000000,"
           "x-bps-total=100000000000 "
           "-blockdev throttle,node-name=n0,throttle-group=tg,file=below"),
    FILTER("blkdebug", "blkdebug",
           "-blockdev blkdebug,node-name=n0,image=below,discard=unmap"),
    FILTER("blkdebug-align", "blkdebug",
           "-blockdev blkdebug,node-name=n0,image=below,discard=unmap,"
           "align=4096,opt-discard=4096"),
    FILTER("blkdebug-max-transfer", "blkdebug",
           "-blockdev blkdebug,node-name=n0,image=below,discard=unmap,"
           "max-transfer=8192"),
    { .name = "filter/preallocate", .drivers = "preallocate",
      .create = { RAW_IMAGE },
      .args = FILE_NODE("p0", "disk.img", "")
              "-blockdev preallocate,node-name=f0,file=p0,discard=unmap "
              RAW_NODE,
      .check = { RAW_CHECK } },
    FILTER("copy-on-read", "copy-on-read",
           "-blockdev copy-on-read,node-name=n0,file=below,discard=unmap"),
    { .name = "filter/copy-before-write",
      .drivers = "copy-before-write qcow2",
      .create = { RAW_IMAGE, "create -f qcow2 @/old.qcow2 4M" },
      .args = FILE_NODE("f0", "disk.img", "") FILE_NODE("f1", "old.qcow2", "")
              "-blockdev raw,node-name=below,file=f0,discard=unmap "
              "-blockdev qcow2,node-name=old,file=f1 "
              "-blockdev copy-before-write,node-name=n0,file=below,target=old,"
              "discard=unmap",
      .check = { RAW_CHECK } },
    { .name = "filter/compress", .drivers = "compress qcow2",
      /* qcow2 does not compress into clusters that are allocated. */
      .create = { "create -f qcow2 @/disk.qcow2 4M" },
      .args = FILE_NODE("f0", "disk.qcow2", "")
              "-blockdev qcow2,node-name=below,file=f0,discard=unmap "
              "-blockdev compress,node-name=n0,file=below,discard=unmap",
      .check = { CHECK("qcow2") }, .once = true },
    { .name = "filter/blkverify", .drivers = "blkverify qcow2",
      .create = { RAW_IMAGE, "create -f qcow2 @/disk.qcow2 4M" },
      .args = FILE_NODE("f0", "disk.img", "") FILE_NODE("f1", "disk.qcow2", "")
              "-blockdev raw,node-name=raw,file=f0 "
              "-blockdev qcow2,node-name=test,file=f1 "
              "-blockdev blkverify,node-name=n0,raw=raw,test=test",
      .check = { RAW_CHECK, CHECK("qcow2") }, .no_zeroes = true },
    { .name = "filter/blklogwrites", .drivers = "blklogwrites",
      .create = { RAW_IMAGE, "create -f raw @/log.img 64M" },
      .args = FILE_NODE("f0", "disk.img", "") FILE_NODE("f1", "log.img", "")
              "-blockdev blklogwrites,node-name=n0,file=f0,log=f1,"
              "discard=unmap",
      .check = { RAW_CHECK } },
    { .name = "filter/quorum", .drivers = "quorum qcow2",
      .create = { RAW_IMAGE, "create -f qcow2 @/disk.qcow2 4M",
                  "create -f raw @/third.img 4M" },
      .args = FILE_NODE("f0", "disk.img", "") FILE_NODE("f1", "disk.qcow2", "")
              FILE_NODE("f2", "third.img", "")
              "-blockdev raw,node-name=c0,file=f0,discard=unmap "
              "-blockdev qcow2,node-name=c1,file=f1,discard=unmap "
              "-blockdev raw,node-name=c2,file=f2,discard=unmap "
              "-blockdev quorum,node-name=n0,vote-threshold=2,"
              "children.0=c0,children.1=c1,children.2=c2",
      .check = { RAW_CHECK, CHECK("qcow2"),
                 "driver=raw,file.driver=file,file.filename=@/third.img" } },

    { .name = "nbd/unix", .drivers = "nbd", .create = { RAW_IMAGE },
      .nbd = true,
      .args = "-blockdev nbd,node-name=f0,server.type=unix,"
              "server.path=@/nbd.sock,export=disk,discard=unmap " RAW_NODE,
      .check = { RAW_CHECK } },
    { .name = "nbd/filtered", .drivers = "nbd copy-on-read",
      .create = { RAW_IMAGE }, .nbd = true,
      .args = "-object throttle-group,id=tg,x-iops-total=1000000 "
              "-blockdev nbd,node-name=f0,server.type=unix,"
              "server.path=@/nbd.sock,export=disk,discard=unmap "
              "-blockdev raw,node-name=r0,file=f0,discard=unmap "
              "-blockdev throttle,node-name=n0,throttle-group=tg,file=r0,"
              "discard=unmap",
      .check = { RAW_CHECK } },
};

/* --- programs ---------------------------------------------------------- */

/* @text with the private directory and the loop device put in */
static char *expand(const char *text, const char *loop)
{
    g_autofree char *marker = dp_tmp("x");
    g_autofree char *dir = g_path_get_dirname(marker);
    g_auto(GStrv) by_loop = g_strsplit(text, "@LOOP", -1);
    g_autofree char *with_loop = g_strjoinv(loop ?: "", by_loop);
    g_auto(GStrv) by_dir = g_strsplit(with_loop, "@", -1);

    return g_strjoinv(dir, by_dir);
}

/* Returns what it prints; fails if it does. */
static char *qemu_img(const char *args)
{
    g_autofree char *expanded = expand(args, NULL);
    g_autofree char *command = g_strdup_printf("%s %s",
                                               g_getenv("QTEST_QEMU_IMG"),
                                               expanded);
    g_autofree char *err = NULL;
    g_autoptr(GError) error = NULL;
    char *out = NULL;
    int status;

    g_spawn_command_line_sync(command, &out, &err, &status, &error);
    g_assert_no_error(error);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        g_error("%s: %s", command, err);
    }
    return out;
}

/* qemu-img and QEMU come from one build. */
static bool has_drivers(const char *wanted)
{
    g_autofree char *help = qemu_img("--help");
    const char *list = strstr(help, "Supported formats:");
    g_auto(GStrv) names = g_strsplit(wanted ?: "", " ", -1);

    g_assert_nonnull(list);
    for (char **name = names; *name; name++) {
        g_autofree char *word = g_strdup_printf(" %s", *name);

        if (**name && !strstr(list, word)) {
            return false;
        }
    }
    return true;
}

static bool can_native(void)
{
    unsigned long context = 0;

    if (syscall(SYS_io_setup, 1, &context) < 0) {
        return false;
    }
    syscall(SYS_io_destroy, context);
    return true;
}

/* Why this row cannot be run here, or NULL */
static const char *why_not(const Backend *b)
{
    if (!have_qemu_img()) {
        return "QTEST_QEMU_IMG is not set";
    }
    if (!has_drivers(b->drivers)) {
        return "this QEMU was built without the driver";
    }
    if (b->direct && !dp_can_open_direct()) {
        return "the file system has no O_DIRECT";
    }
    if (b->native && !can_native()) {
        return "the host does not let us have Linux AIO";
    }
    if (b->io_uring && !dp_can_io_uring()) {
        return "the host does not let us have io_uring";
    }
    if (b->nbd && !dp_nbd_can()) {
        return "QTEST_QEMU_STORAGE_DAEMON_BINARY is not set";
    }
    return NULL;
}

/* --- loop devices ------------------------------------------------------ */

/*
 * The device goes away with its last user, however that ends.  Returns its
 * path, or NULL if there is none to be had.
 */
static char *loop_attach(const char *image, int *fd)
{
    struct loop_info64 info = { .lo_flags = LO_FLAGS_AUTOCLEAR };
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int file = open(image, O_RDWR | O_CLOEXEC);
    char *path = NULL;
    int n;

    g_assert_cmpint(file, >=, 0);
    *fd = -1;
    for (unsigned try = 0; control >= 0 && try < 8; try++) {
        n = ioctl(control, LOOP_CTL_GET_FREE);
        if (n < 0) {
            break;
        }
        path = g_strdup_printf("/dev/loop%d", n);
        *fd = open(path, O_RDWR | O_CLOEXEC);
        if (*fd >= 0 && !ioctl(*fd, LOOP_SET_FD, file)) {
            g_assert_cmpint(ioctl(*fd, LOOP_SET_STATUS64, &info), ==, 0);
            break;
        }
        /* Another process was faster, or we may not */
        if (*fd >= 0) {
            close(*fd);
            *fd = -1;
        }
        g_clear_pointer(&path, g_free);
    }
    close(file);
    if (control >= 0) {
        close(control);
    }
    return path;
}

/* --- a model of the disk ----------------------------------------------- */

typedef struct Guest {
    DpVm *vm;
    DpDisk *disk;
    uint8_t *model;     /* what the disk must hold */
    char *loop;
    int loop_fd;
    GPid server;
    bool no_zeroes;
} Guest;

static uint8_t transfer(Guest *g, DpReq *req, uint32_t type)
{
    req->type = type;
    req->to_guest = type == VIRTIO_BLK_T_IN;
    return dp_run(g->disk, req);
}

static void write_random(Guest *g, uint64_t sector, uint32_t len,
                         DpFraming framing)
{
    uint8_t *data = g->model + sector * DP_SECTOR;
    DpReq *req = dp_req(g->disk, VIRTIO_BLK_T_OUT, sector, len);

    req->framing = framing;
    for (uint32_t i = 0; i < len; i += 4) {
        stl_le_p(data + i, g_test_rand_int());
    }
    qtest_bufwrite(g->vm->qts, req->data, data, len);
    g_assert_cmpint(transfer(g, req, VIRTIO_BLK_T_OUT), ==, OK);
    dp_req_free(g->disk, req);
}

static void read_check(Guest *g, uint64_t sector, uint32_t len,
                       DpFraming framing)
{
    g_autofree uint8_t *got = g_malloc(len);
    DpReq *req = dp_req(g->disk, VIRTIO_BLK_T_IN, sector, len);

    req->framing = framing;
    g_assert_cmpint(transfer(g, req, VIRTIO_BLK_T_IN), ==, OK);
    qtest_bufread(g->vm->qts, req->data, got, len);
    if (memcmp(got, g->model + sector * DP_SECTOR, len)) {
        g_error("sectors %" PRIu64 " to %" PRIu64 " are not what was written",
                sector, sector + len / DP_SECTOR - 1);
    }
    dp_req_free(g->disk, req);
}

static void run_range(Guest *g, uint32_t type, uint64_t sector,
                      uint32_t sectors)
{
    struct virtio_blk_discard_write_zeroes seg = {
        .sector = cpu_to_le64(sector),
        .num_sectors = cpu_to_le32(sectors),
    };
    DpReq *req = dp_req(g->disk, type, 0, sizeof(seg));

    qtest_memwrite(g->vm->qts, req->data, &seg, sizeof(seg));
    g_assert_cmpint(dp_run(g->disk, req), ==, OK);
    dp_req_free(g->disk, req);
}

static void flush(Guest *g)
{
    DpReq *req = dp_req(g->disk, VIRTIO_BLK_T_FLUSH, 0, 0);

    g_assert_cmpint(dp_run(g->disk, req), ==, OK);
    dp_req_free(g->disk, req);
}

/* What is discarded may hold anything, so it is written again. */
static void discard(Guest *g, uint64_t sector, uint32_t sectors)
{
    run_range(g, VIRTIO_BLK_T_DISCARD, sector, sectors);
    write_random(g, sector, sectors * DP_SECTOR, DP_DIRECT);
}

static void write_zeroes(Guest *g, uint64_t sector, uint32_t sectors)
{
    if (g->no_zeroes) {
        return;
    }
    run_range(g, VIRTIO_BLK_T_WRITE_ZEROES, sector, sectors);
    memset(g->model + sector * DP_SECTOR, 0, sectors * DP_SECTOR);
}

static void write_and_check(Guest *g)
{
    static const uint32_t sizes[] = { 512, 1536, 4096, 69632 };

    for (unsigned i = 0; i < 24; i++) {
        uint32_t len = sizes[i % ARRAY_SIZE(sizes)];
        uint64_t sector = g_test_rand_int_range(0, SECTORS / 2 -
                                                len / DP_SECTOR + 1);
        DpFraming framing = i % DP_FRAMING__MAX;

        write_random(g, sector, len, framing);
        read_check(g, sector, len, framing);
        if (i % 8 == 7) {
            flush(g);
            discard(g, sector, len / DP_SECTOR);
            write_zeroes(g, sector + 1, 8);
            read_check(g, sector, len, DP_DIRECT);
        }
    }
    for (uint64_t at = 0; at < SECTORS / 2; at += 256) {
        read_check(g, at, 256 * DP_SECTOR, DP_DIRECT);
    }
}

/* Many requests at once, beside what the model knows; zeroed afterwards. */
static void many_at_once(Guest *g)
{
    DpLoad *load = dp_load_new(g->disk, 12, SECTORS / 2);

    dp_load_run(load, 96);
    dp_load_finish(load);
    write_zeroes(g, SECTORS / 2, SECTORS / 2);
    for (uint64_t at = SECTORS / 2; at < SECTORS; at += 1024) {
        if (g->no_zeroes) {
            write_random(g, at, 1024 * DP_SECTOR, DP_DIRECT);
        }
        read_check(g, at, 1024 * DP_SECTOR, DP_DIRECT);
    }
}

/* --- each backend ------------------------------------------------------ */

static bool guest_start(Guest *g, const Backend *b)
{
    g_autofree char *image = dp_tmp("disk.img");
    g_autofree char *args = NULL;

    *g = (Guest) { .loop_fd = -1, .no_zeroes = b->no_zeroes };
    for (unsigned i = 0; i < ARRAY_SIZE(b->create) && b->create[i]; i++) {
        g_free(qemu_img(b->create[i]));
    }
    if (b->loop) {
        g->loop = loop_attach(image, &g->loop_fd);
        if (!g->loop) {
            return false;
        }
    }
    if (b->nbd) {
        g->server = dp_nbd_start();
    }
    args = expand(b->args, g->loop);
    g->model = g_malloc0(SIZE);
    g->vm = dp_vm_start("%s -device virtio-blk-pci,id=d0,drive=n0,addr=%d%s",
                        args, DP_SLOT, dp_mode_iothread.props);
    g->disk = dp_disk_new(g->vm, DP_F_ALL);
    return true;
}

static void guest_end(Guest *g)
{
    if (g->loop_fd >= 0) {
        close(g->loop_fd);
    }
    if (g->server) {
        dp_nbd_kill(g->server);
    }
    g_free(g->loop);
    g_free(g->model);
    dp_tmp_cleanup();
}

/* Read the disk as anybody else would. */
static void check_image(Guest *g, const char *options)
{
    g_autofree char *args = g_strdup_printf(
        "convert -U -O raw --image-opts %s @/copy.img", options);
    g_autofree char *path = dp_tmp("copy.img");
    g_autofree char *data = NULL;
    gsize len;

    g_free(qemu_img(args));
    g_assert_true(g_file_get_contents(path, &data, &len, NULL));
    g_assert_cmpuint(len, >=, SIZE);
    for (unsigned i = 0; i < SECTORS; i++) {
        if (memcmp(data + i * DP_SECTOR, g->model + i * DP_SECTOR,
                   DP_SECTOR)) {
            g_error("%s: sector %u is not what was written", options, i);
        }
    }
    unlink(path);
}

static void write_once(Guest *g)
{
    for (uint64_t at = 0; at < SECTORS; at += 128) {
        write_random(g, at, 65536, DP_DIRECT);
        read_check(g, at, 65536, DP_INDIRECT);
    }
}

static void write_anything(Guest *g)
{
    DpInfo info;

    write_and_check(g);
    many_at_once(g);
    flush(g);
    dp_info(g->vm, "d0", &info);
    g_assert_cmpint(info.reads, >, 24);
    g_assert_cmpint(info.writes, >, 24);
    g_assert_cmpint(info.discards, ==, 3);
    g_assert_cmpint(info.write_zeroes, ==, g->no_zeroes ? 0 : 4);
    g_assert_cmpint(info.flushes, ==, 4);
}

/* covers: BLKR-5, BLKR-7, BLKR-20, BLKR-21, DWZ-8: on each kind of backend */
static void test_backend(const void *opaque)
{
    const Backend *b = opaque;
    const char *reason = why_not(b);
    DpInfo info;
    Guest g;

    if (reason) {
        g_test_skip(reason);
        return;
    }
    if (!guest_start(&g, b)) {
        guest_end(&g);
        g_test_skip("the host does not let us have a loop device");
        return;
    }
    if (b->once) {
        write_once(&g);
    } else {
        write_anything(&g);
    }
    dp_assert_mode(g.vm, &dp_mode_iothread);
    dp_info(g.vm, "d0", &info);
    g_assert_cmpint(info.errors, ==, 0);
    dp_disk_free(g.disk);
    dp_vm_end(g.vm);
    for (unsigned i = 0; i < ARRAY_SIZE(b->check) && b->check[i]; i++) {
        check_image(&g, b->check[i]);
    }
    guest_end(&g);
}

/* --- disks of odd sizes ------------------------------------------------ */

static uint64_t capacity(DpDisk *disk)
{
    return qvirtio_config_readl(disk->vdev, 0) |
           (uint64_t)qvirtio_config_readl(disk->vdev, 4) << 32;
}

static uint8_t try_rw(DpDisk *disk, uint32_t type, uint64_t sector,
                      uint32_t len)
{
    uint8_t status = dp_rw(disk, type, sector, len, 7);

    dp_assert_mode(disk->vm, &dp_mode_iothread);
    return status;
}

/* covers: BLKC-3, BLKC-23, ROBB-5, ROBB-6: no sector at all, until it grows */
static void test_no_size(void)
{
    DpVm *vm = dp_vm_file(&dp_mode_iothread, 0, "");
    DpDisk *disk = dp_disk_new(vm, DP_F_ALL);
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_FLUSH, 0, 0);

    g_assert_cmpuint(capacity(disk), ==, 0);
    g_assert_cmpint(try_rw(disk, VIRTIO_BLK_T_IN, 0, 512), ==, IOERR);
    g_assert_cmpint(try_rw(disk, VIRTIO_BLK_T_OUT, 0, 512), ==, IOERR);
    g_assert_cmpint(dp_run(disk, req), ==, OK);
    dp_req_free(disk, req);

    dp_qmp_ok(vm, NULL, "{'execute': 'block_resize', 'arguments': {"
              " 'node-name': 'n0', 'size': 1048576 }}");
    dp_wait_config_irq(disk);
    g_assert_cmpuint(capacity(disk), ==, 2048);
    g_assert_cmpint(try_rw(disk, VIRTIO_BLK_T_OUT, 2040, 4096), ==, OK);
    g_assert_cmpint(try_rw(disk, VIRTIO_BLK_T_IN, 2040, 4096), ==, OK);
    dp_disk_free(disk);
    dp_vm_quit(vm);
}

typedef struct OddSize {
    uint64_t bytes;
    const char *props;
    uint64_t capacity;
    uint64_t sector;        /* of the last block */
    uint32_t len;
    uint8_t status;
} OddSize;

/* A part of a sector counts as one; a part of a larger block is no use. */
static const OddSize odd_sizes[] = {
    { SIZE + 100, "", SECTORS + 1, SECTORS, 512, OK },
    { SIZE - 1, "", SECTORS, SECTORS - 1, 512, OK },
    { 511, "", 1, 0, 512, OK },
    { SIZE + 512, "", SECTORS + 1, SECTORS, 512, OK },
    { SIZE + 512, ",logical_block_size=4096,physical_block_size=4096",
      SECTORS + 1, SECTORS, 4096, IOERR },
    { SIZE + 512, ",logical_block_size=4096,physical_block_size=4096",
      SECTORS + 1, SECTORS - 8, 4096, OK },
    { SIZE + 512, ",logical_block_size=4096,physical_block_size=4096",
      SECTORS + 1, SECTORS, 512, IOERR },
};

/* covers: BLKC-3, ROBB-3, ROBB-4, ROBB-5, ROBB-6 */
static void test_odd_sizes(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(odd_sizes); i++) {
        const OddSize *odd = &odd_sizes[i];
        DpVm *vm = dp_vm_file(&dp_mode_iothread, odd->bytes, odd->props);
        DpDisk *disk = dp_disk_new(vm, DP_F_ALL);

        g_test_message("%" PRIu64 " bytes%s", odd->bytes, odd->props);
        g_assert_cmpuint(capacity(disk), ==, odd->capacity);
        g_assert_cmpint(try_rw(disk, VIRTIO_BLK_T_OUT, odd->sector, odd->len),
                        ==, odd->status);
        g_assert_cmpint(try_rw(disk, VIRTIO_BLK_T_IN, odd->sector, odd->len),
                        ==, odd->status);
        dp_disk_free(disk);
        dp_vm_quit(vm);
    }
}

/* --- read-only --------------------------------------------------------- */

/* Without discard=unmap a discard is ignored, and thus no error. */
static const Backend read_only[] = {
    { .name = "read-only/qcow2", .drivers = "qcow2",
      .create = { "create -f qcow2 @/disk.qcow2 4M" },
      .args = FILE_NODE("f0", "disk.qcow2", ",read-only=on")
              "-blockdev qcow2,node-name=n0,file=f0,read-only=on,"
              "discard=unmap",
      .check = { CHECK("qcow2") } },
    { .name = "read-only/filtered", .drivers = "throttle",
      .create = { RAW_IMAGE },
      .args = FILE_NODE("f0", "disk.img", ",read-only=on")
              "-object throttle-group,id=tg "
              "-blockdev throttle,node-name=n0,throttle-group=tg,file=f0,"
              "read-only=on,discard=unmap",
      .check = { RAW_CHECK } },
    { .name = "read-only/nbd", .drivers = "nbd", .create = { RAW_IMAGE },
      .nbd = true,
      .args = "-blockdev nbd,node-name=f0,server.type=unix,read-only=on,"
              "server.path=@/nbd.sock,export=disk,discard=unmap "
              "-blockdev raw,node-name=n0,file=f0,read-only=on,discard=unmap",
      .check = { RAW_CHECK } },
};

/* covers: BLKR-12, BLKR-13, BLKR-14, BLKC-24 */
static void test_read_only(const void *opaque)
{
    static const uint32_t types[] = {
        VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
    };
    const Backend *b = opaque;
    const char *reason = why_not(b);
    Guest g;

    if (reason) {
        g_test_skip(reason);
        return;
    }
    g_assert_true(guest_start(&g, b));
    g_assert_cmphex(g.disk->features & (1ull << VIRTIO_BLK_F_RO), !=, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        struct virtio_blk_discard_write_zeroes seg = {
            .num_sectors = cpu_to_le32(8),
        };
        DpReq *req = dp_req(g.disk, types[i], 0,
                            types[i] == VIRTIO_BLK_T_OUT ? 512 : sizeof(seg));

        qtest_memwrite(g.vm->qts, req->data, &seg, sizeof(seg));
        g_assert_cmpint(dp_run(g.disk, req), ==, IOERR);
        dp_req_free(g.disk, req);
        read_check(&g, 0, 4096, DP_DIRECT);
    }
    dp_assert_mode(g.vm, &dp_mode_iothread);
    dp_disk_free(g.disk);
    dp_vm_end(g.vm);
    check_image(&g, b->check[0]);
    guest_end(&g);
}

/* --- a server that goes away ------------------------------------------- */

#define NBD_DISK(more) \
    { .drivers = "nbd", .create = { RAW_IMAGE }, .nbd = true, \
      .args = "-blockdev nbd,node-name=f0,server.type=unix," \
              "server.path=@/nbd.sock,export=disk" more " " RAW_NODE }

static const Backend nbd_waits = NBD_DISK(",reconnect-delay=600");
static const Backend nbd_fails = NBD_DISK("");

/* Requests wait for the server, and the plane for none of them. */
static void test_nbd_returns(void)
{
    const char *reason = why_not(&nbd_waits);
    DpLoad *load;
    DpInfo info;
    Guest g;

    if (reason) {
        g_test_skip(reason);
        return;
    }
    g_assert_true(guest_start(&g, &nbd_waits));
    load = dp_load_new(g.disk, 8, 0);
    for (unsigned i = 0; i < 3; i++) {
        dp_load_run(load, 24);
        dp_nbd_kill(g.server);
        dp_load_send(load);
        dp_info(g.vm, "d0", &info);
        g_assert_true(info.serving);
        g.server = dp_nbd_start();
        dp_load_run(load, 24);
    }
    dp_load_finish(load);
    dp_info(g.vm, "d0", &info);
    g_assert_cmpint(info.errors, ==, 0);
    dp_assert_mode(g.vm, &dp_mode_iothread);
    dp_disk_free(g.disk);
    dp_vm_end(g.vm);
    guest_end(&g);
}

/* Requests fail, and the disk goes on being served. */
static void test_nbd_gone(void)
{
    const char *reason = why_not(&nbd_fails);
    DpInfo info;
    Guest g;

    if (reason) {
        g_test_skip(reason);
        return;
    }
    g_assert_true(guest_start(&g, &nbd_fails));
    dp_assert_works(g.disk);
    dp_nbd_kill(g.server);
    g.server = 0;
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpint(try_rw(g.disk, VIRTIO_BLK_T_OUT, 0, 4096), ==, IOERR);
        g_assert_cmpint(try_rw(g.disk, VIRTIO_BLK_T_IN, 0, 4096), ==, IOERR);
        dp_disk_start(g.disk, DP_F_ALL);
    }
    dp_info(g.vm, "d0", &info);
    g_assert_cmpint(info.errors, ==, 6);
    dp_disk_free(g.disk);
    dp_vm_end(g.vm);
    guest_end(&g);
}

/* --- another user of the node ------------------------------------------ */

static const Backend plain = {
    .drivers = "nbd", .create = { RAW_IMAGE },
    .args = FILE_NODE("f0", "disk.img", "") RAW_NODE,
};

/* What the plane has written can be read through an export at once. */
static void test_export(void)
{
    g_autofree char *socket = NULL;
    const char *reason = why_not(&plain);
    Guest g;

    if (reason) {
        g_test_skip(reason);
        return;
    }
    g_assert_true(guest_start(&g, &plain));
    socket = dp_tmp("export.sock");
    dp_qmp_ok(g.vm, NULL, "{'execute': 'nbd-server-start', 'arguments': {"
              " 'addr': { 'type': 'unix', 'data': { 'path': %s }}}}", socket);
    dp_qmp_ok(g.vm, NULL, "{'execute': 'block-export-add', 'arguments': {"
              " 'type': 'nbd', 'id': 'e0', 'node-name': 'n0' }}");
    for (unsigned i = 0; i < 3; i++) {
        write_and_check(&g);
        check_image(&g, "driver=nbd,server.type=unix,"
                    "server.path=@/export.sock,export=n0");
        dp_assert_mode(g.vm, &dp_mode_iothread);
    }
    dp_disk_free(g.disk);
    dp_vm_end(g.vm);
    guest_end(&g);
}

static void add_backends(const Backend *table, unsigned n,
                         void (*fn)(const void *))
{
    for (unsigned i = 0; i < n; i++) {
        g_autofree char *path = g_strdup_printf(
            "/virtio-blk-dataplane/backends/%s", table[i].name);

        qtest_add_data_func(path, &table[i], fn);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add_backends(backends, ARRAY_SIZE(backends), test_backend);
    add_backends(read_only, ARRAY_SIZE(read_only), test_read_only);
    qtest_add_func("/virtio-blk-dataplane/backends/no-size", test_no_size);
    qtest_add_func("/virtio-blk-dataplane/backends/odd-sizes",
                   test_odd_sizes);
    qtest_add_func("/virtio-blk-dataplane/backends/nbd/server-returns",
                   test_nbd_returns);
    qtest_add_func("/virtio-blk-dataplane/backends/nbd/server-gone",
                   test_nbd_gone);
    qtest_add_func("/virtio-blk-dataplane/backends/export", test_export);
    return g_test_run();
}
