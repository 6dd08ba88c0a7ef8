/*
 * In-order use at the edges: a ring that is full, and a device that broke
 *
 * Elements come back in the order in which they were made available, also if
 * they fill the ring, and none comes back in another life of the device.  On
 * QEMU's own path, too, which has an order of its own to keep.  May know that
 * a request for the device's name is done at once.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "virtio-blk-dataplane-common.h"

#define OK VIRTIO_BLK_S_OK
#define RING_NUM 8
#define STATUS_OFFSET 64
#define LAPS 3
#define ZEROES ",read-zeroes=on"

static const DpMode mode_off_in_order = {
    "off-in-order", ",iothread=io0,x-data-plane=off,in_order=on",
    "'iothread': 'io0', 'x-data-plane': 'off', 'in_order': true",
    false, .in_order = true
};
static const DpMode mode_off_packed_in_order = {
    "off-packed-in-order",
    ",iothread=io0,x-data-plane=off,packed=on,in_order=on",
    "'iothread': 'io0', 'x-data-plane': 'off', 'packed': true,"
    " 'in_order': true", false, .packed = true, .in_order = true
};

static const DpMode *const modes[] = {
    &dp_mode_in_order, &dp_mode_packed_in_order,
    &mode_off_in_order, &mode_off_packed_in_order,
};

static void start_small(DpDisk *disk)
{
    disk->want_num = RING_NUM;
    dp_disk_start(disk, DP_F_ALL);
}

/* --- a full ring ----------------------------------------------------- */

/* A chain of @n descriptors: a read, or a flush if there are but two */
static void send_chain(DpDisk *disk, uint64_t page, unsigned n)
{
    struct virtio_blk_outhdr head = {
        .type = cpu_to_le32(n == 2 ? VIRTIO_BLK_T_FLUSH : VIRTIO_BLK_T_IN),
    };
    DpSeg seg[RING_NUM] = { { page, sizeof(head), 0 } };

    g_assert_cmpuint(n, >=, 2);
    g_assert_cmpuint(n, <=, RING_NUM);
    for (unsigned i = 1; i < n - 1; i++) {
        seg[i] = (DpSeg) { page + DP_SECTOR * i, DP_SECTOR,
                           VRING_DESC_F_WRITE };
    }
    seg[n - 1] = (DpSeg) { page + STATUS_OFFSET, 1, VRING_DESC_F_WRITE };

    qtest_memwrite(disk->vm->qts, page, &head, sizeof(head));
    qtest_writeb(disk->vm->qts, page + STATUS_OFFSET, DP_NO_STATUS);
    dp_avail(disk, dp_chain(disk, seg, n));
}

static void wait_used(DpDisk *disk)
{
    gint64 deadline = dp_deadline();
    uint16_t head;
    uint32_t len;

    while (!dp_take_used(disk, &head, &len)) {
        dp_check_deadline(deadline, "a chain in a full ring");
    }
}

/* @num chains of @n descriptors, the next @num * @n of the ring */
static void run_chains(DpDisk *disk, unsigned num, unsigned n)
{
    uint64_t page[RING_NUM];

    for (unsigned i = 0; i < num; i++) {
        page[i] = guest_alloc(&disk->vm->alloc, DP_SECTOR * RING_NUM);
        send_chain(disk, page[i], n);
    }
    dp_expose(disk);
    dp_kick_always(disk);
    for (unsigned i = 0; i < num; i++) {
        wait_used(disk);
    }
    for (unsigned i = 0; i < num; i++) {
        g_assert_cmpint(qtest_readb(disk->vm->qts, page[i] + STATUS_OFFSET),
                        ==, OK);
        guest_free(&disk->vm->alloc, page[i]);
    }
}

/*
 * covers: G8: chains that fill the ring, from its start and from elsewhere,
 * are returned like others
 */
static void test_full(DpDisk *disk)
{
    static const unsigned lengths[] = { RING_NUM, 4, 2 };

    for (unsigned first = 0; first < RING_NUM; first++) {
        start_small(disk);
        if (first > 1) {
            run_chains(disk, 1, first);
        }
        for (unsigned i = 0; i < LAPS * ARRAY_SIZE(lengths); i++) {
            unsigned n = lengths[i % ARRAY_SIZE(lengths)];

            run_chains(disk, RING_NUM / n, n);
        }
        run_chains(disk, 1, 3);
    }
}

/* --- a device that broke --------------------------------------------- */

static DpReq *send_read(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_IN, 8, DP_SECTOR);

    req->framing = DP_INDIRECT;
    dp_submit(disk, req);
    return req;
}

static DpReq *send_get_id(DpDisk *disk)
{
    DpReq *req = dp_req(disk, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES);

    req->framing = DP_INDIRECT;
    dp_submit(disk, req);
    return req;
}

/* A list without a status byte */
static void send_broken(DpDisk *disk, uint64_t page)
{
    DpSeg seg = { page, 16, 0 };

    dp_avail(disk, dp_chain(disk, &seg, 1));
}

/* The device breaks while its second element is done, and the first is not */
static void break_out_of_order(DpDisk *disk)
{
    DpReq *held = send_read(disk);
    DpReq *done = send_get_id(disk);

    send_broken(disk, done->page);
    dp_expose(disk);
    dp_kick_always(disk);
    dp_assert_broken(disk);
    g_assert_cmpuint(dp_count_used(disk), ==, 0);
    dp_disk_reset(disk);
    dp_req_free(disk, held);
    dp_req_free(disk, done);
}

/* Another life: now the first element is done, and the second is not */
static void check_order(DpDisk *disk)
{
    DpReq *done = send_get_id(disk);
    DpReq *held = send_read(disk);

    dp_expose(disk);
    dp_kick_always(disk);
    dp_poll(disk, done);
    g_assert_cmpuint(dp_count_used(disk), ==, 0);
    g_assert_true(held->in_flight);
    dp_release(disk);
    dp_poll(disk, held);
    g_assert_cmpint(done->status, ==, OK);
    g_assert_cmpint(held->status, ==, OK);
    g_assert_true(dp_req_is_byte(disk, held, 0));
    dp_req_free(disk, held);
    dp_req_free(disk, done);
}

/*
 * covers: G8, STAT-10: what was done out of its turn when the device broke has
 * no meaning after the reset
 */
static void test_reset(DpDisk *disk)
{
    start_small(disk);
    for (unsigned i = 0; i < LAPS; i++) {
        dp_hold(disk);
        break_out_of_order(disk);
        dp_release(disk);
        dp_disk_start(disk, DP_F_ALL);
        dp_hold(disk);
        check_order(disk);
        dp_disk_start(disk, DP_F_ALL);
    }
}

int main(int argc, char **argv)
{
    static const DpTest tests[] = {
        { "full", test_full, .null = ZEROES, .idle = true },
        { "reset", test_reset, .null = ZEROES, .idle = true },
    };

    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(modes); j++) {
            dp_add_row("in-order", &tests[i], modes[j]);
        }
    }
    return g_test_run();
}
