/*
 * Guest memory as fixed buffers of io_uring (x-fixed-buffers=on)
 *
 * Knows which memory is the guest's, and what must not happen to it while the
 * kernel has it pinned: the guest's page tables would get new pages, and the
 * kernel would go on to use the old ones.  Does not know io_uring
 * (block/io_uring-buffers.c does).
 *
 * The memory is registered for all devices of the process that want it, from
 * the first one to the last.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/io_uring-buffers.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "exec/ramlist.h"
#include "migration/blocker.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "virtio-blk-fixed.h"

/*
 * Postcopy replaces pages of the destination, and a background snapshot saves
 * pages when they are about to be written, which the kernel does unseen.
 */
static const MigrationCapability conflicts[] = {
    MIGRATION_CAPABILITY_POSTCOPY_RAM,
    MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT,
};

static const char conflict_user[] =
    "x-fixed-buffers=on of a virtio-blk device, as the kernel keeps guest "
    "memory pinned; do without one of them";

/* Protected by the BQL */
static unsigned users;

/* Guest memory */

/*
 * Registers of devices cannot be pinned, and ROMs cannot be written to.
 * Returns: false if that is what is there; else *name is to be freed
 */
static bool block_is_ram(void *host, char **name)
{
    ram_addr_t offset;
    RAMBlock *block;

    RCU_READ_LOCK_GUARD();
    block = qemu_ram_block_from_host(host, false, &offset);
    if (!block || memory_region_is_ram_device(block->mr) ||
        memory_region_is_rom(block->mr) || block->flags & RAM_READONLY) {
        return false;
    }
    *name = g_strdup(block->idstr[0] ? block->idstr
                                     : memory_region_name(block->mr));
    return true;
}

static void fixed_ram_added(RAMBlockNotifier *n, void *host, size_t size,
                            size_t max_size)
{
    g_autofree char *name = NULL;
    Error *err = NULL;

    if (block_is_ram(host, &name) &&
        !luring_buffers_add(name, host, max_size, &err)) {
        warn_reportf_err(err, "x-fixed-buffers=on has no effect there: ");
    }
}

/* The last reference to the memory has gone, so no request is there. */
static void fixed_ram_removed(RAMBlockNotifier *n, void *host, size_t size,
                              size_t max_size)
{
    luring_buffers_remove(host);
}

static RAMBlockNotifier ram_notifier = {
    .ram_block_added = fixed_ram_added,
    .ram_block_removed = fixed_ram_removed,
};

/* What pinned memory conflicts with */

static void unblock_capabilities(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        migrate_unblock_capability(conflicts[i], conflict_user);
    }
}

static bool block_capabilities(Error **errp)
{
    for (unsigned i = 0; i < ARRAY_SIZE(conflicts); i++) {
        if (!migrate_block_capability(conflicts[i], conflict_user, errp)) {
            unblock_capabilities(i);
            return false;
        }
    }
    return true;
}

static bool first_user(Error **errp)
{
    if (!block_capabilities(errp)) {
        return false;
    }
    if (ram_block_discard_disable(true) < 0) {
        error_setg(errp, "x-fixed-buffers=on conflicts with a device that "
                   "gives guest memory back to the host, such as virtio-mem; "
                   "do without one of them");
        unblock_capabilities(ARRAY_SIZE(conflicts));
        return false;
    }
    ram_block_notifier_add(&ram_notifier);
    return true;
}

static void last_user(void)
{
    ram_block_notifier_remove(&ram_notifier);
    ram_block_discard_disable(false);
    unblock_capabilities(ARRAY_SIZE(conflicts));
}

/* The device */

bool virtio_blk_fixed_buffers_enter(VirtIOBlock *s, AioContext *ctx,
                                    Error **errp)
{
    ERRP_GUARD();
    GLOBAL_STATE_CODE();

    if (s->conf.x_fixed_buffers && !luring_buffers_attach(ctx, errp)) {
        error_prepend(errp, "x-fixed-buffers=on: ");
        return false;
    }
    return true;
}

void virtio_blk_fixed_buffers_leave(VirtIOBlock *s, AioContext *ctx)
{
    GLOBAL_STATE_CODE();

    if (s->conf.x_fixed_buffers) {
        luring_buffers_detach(ctx);
    }
}

static void detach_queues(VirtIOBlock *s, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        virtio_blk_fixed_buffers_leave(s, s->vq_aio_context[i]);
    }
    if (!--users) {
        last_user();
    }
}

bool virtio_blk_fixed_buffers_begin(VirtIOBlock *s, Error **errp)
{
    GLOBAL_STATE_CODE();

    if (!s->conf.x_fixed_buffers) {
        return true;
    }
    if (!s->dataplane || !s->conf.x_direct) {
        error_setg(errp, "x-fixed-buffers=on needs %s",
                   s->dataplane ? "x-direct=on" : "a data plane; set iothread "
                   "or iothread-vq-mapping, without x-data-plane=off");
        return false;
    }
    if (!users++ && !first_user(errp)) {
        users--;
        return false;
    }
    for (unsigned i = 0; i < s->conf.num_queues; i++) {
        if (!virtio_blk_fixed_buffers_enter(s, s->vq_aio_context[i], errp)) {
            detach_queues(s, i);
            return false;
        }
    }
    return true;
}

void virtio_blk_fixed_buffers_end(VirtIOBlock *s)
{
    GLOBAL_STATE_CODE();

    if (s->conf.x_fixed_buffers) {
        detach_queues(s, s->conf.num_queues);
    }
}
