/*
 * Which IOThread serves which queue of a virtio-blk data plane
 *
 * At first it is as the properties iothread and iothread-vq-mapping say.  Later
 * queues may move, which the properties do not tell.  Knows names and
 * references; not queues, nor when one may move.
 *
 * The device has taken references for its properties.  They are dropped, too,
 * when an IOThread has lost its last queue and the backend, whose nodes may
 * have timers there, so that it ends when the user deletes it.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "system/block-backend.h"
#include "virtio-blk-fixed.h"
#include "virtio-blk-iothreads.h"

/* An IOThread, with a reference, and its id; or NULL */
typedef struct Home {
    IOThread *iothread;
    char *id;
} Home;

struct DataPlaneIOThreads {
    VirtIOBlock *s;
    char *iothread_id;          /* of the property, or NULL: a mapping */
    unsigned num_queues;
    Home *homes;                /* of each queue; NULL: as the properties say */
    Home *next;                 /* planned */
    GSList *left;               /* IOThreads, with a reference each */
};

static char *iothread_dup_id(IOThread *iothread)
{
    return g_strdup(object_get_canonical_path_component(OBJECT(iothread)));
}

static void home_set(Home *home, IOThread *iothread, const char *id)
{
    object_ref(OBJECT(iothread));
    home->iothread = iothread;
    home->id = g_strdup(id);
}

static void home_clear(Home *home)
{
    if (home->iothread) {
        object_unref(OBJECT(home->iothread));
    }
    g_free(home->id);
    *home = (Home) { };
}

DataPlaneIOThreads *data_plane_iothreads_new(VirtIOBlock *s)
{
    DataPlaneIOThreads *t = g_new0(DataPlaneIOThreads, 1);

    GLOBAL_STATE_CODE();
    t->s = s;
    t->num_queues = s->conf.num_queues;
    t->next = g_new0(Home, t->num_queues);
    if (s->conf.iothread) {
        t->iothread_id = iothread_dup_id(s->conf.iothread);
    }
    return t;
}

void data_plane_iothreads_free(DataPlaneIOThreads *t)
{
    GLOBAL_STATE_CODE();

    for (unsigned i = 0; i < t->num_queues; i++) {
        assert(!t->next[i].iothread);
        if (t->homes) {
            home_clear(&t->homes[i]);
        }
    }
    g_slist_free_full(t->left, object_unref);
    g_free(t->homes);
    g_free(t->next);
    g_free(t->iothread_id);
    g_free(t);
}

/* What the mapping says of a queue */
static void home_set_mapped(Home *home, VirtIOBlock *s, unsigned n)
{
    IOThreadVirtQueueMappingList *node = s->conf.iothread_vq_mapping_list;
    unsigned i = g_slist_length(s->vq_iothreads);

    /* iothread_vq_mapping_apply() has put the last of the mapping first. */
    for (; node; node = node->next) {
        IOThread *iothread = g_slist_nth_data(s->vq_iothreads, --i);

        if (iothread_get_aio_context(iothread) == s->vq_aio_context[n]) {
            home_set(home, iothread, node->value->iothread);
            return;
        }
    }
}

/*
 * The device has made its contexts after the plane, so they are looked up when
 * somebody asks first.
 */
static Home *home_of(DataPlaneIOThreads *t, unsigned n)
{
    VirtIOBlock *s = t->s;

    if (!t->homes) {
        t->homes = g_new0(Home, t->num_queues);
        for (unsigned i = 0; i < t->num_queues; i++) {
            if (t->iothread_id) {
                home_set(&t->homes[i], s->conf.iothread, t->iothread_id);
            } else {
                home_set_mapped(&t->homes[i], s, i);
            }
        }
    }
    return &t->homes[n];
}

const char *data_plane_iothreads_id(DataPlaneIOThreads *t, unsigned n)
{
    GLOBAL_STATE_CODE();

    return home_of(t, n)->id;
}

const char *data_plane_iothreads_next_id(DataPlaneIOThreads *t, unsigned n)
{
    GLOBAL_STATE_CODE();

    return t->next[n].id;
}

bool data_plane_iothreads_uses(DataPlaneIOThreads *t, const AioContext *ctx)
{
    GLOBAL_STATE_CODE();

    for (unsigned i = 0; i < t->num_queues; i++) {
        if (t->s->vq_aio_context[i] == ctx) {
            return true;
        }
    }
    return false;
}

static void plan_cancel(DataPlaneIOThreads *t, unsigned n)
{
    Home *next = &t->next[n];

    if (next->iothread) {
        AioContext *ctx = iothread_get_aio_context(next->iothread);

        virtio_blk_fixed_buffers_leave(t->s, ctx);
        home_clear(next);
    }
}

bool data_plane_iothreads_plan(DataPlaneIOThreads *t, unsigned n,
                               IOThread *iothread, Error **errp)
{
    g_autofree char *id = iothread_dup_id(iothread);

    GLOBAL_STATE_CODE();
    if (iothread == t->next[n].iothread) {
        return true;
    }
    if (iothread == home_of(t, n)->iothread) {
        plan_cancel(t, n);
        return true;
    }
    if (!virtio_blk_fixed_buffers_enter(t->s,
                                        iothread_get_aio_context(iothread),
                                        errp)) {
        return false;
    }
    plan_cancel(t, n);
    home_set(&t->next[n], iothread, id);
    return true;
}

/*
 * The property iothread holds two references: its own and that of
 * virtio_blk_vq_aio_context_init().
 */
static void replace_property(VirtIOBlock *s, IOThread *iothread)
{
    IOThread *old = s->conf.iothread;

    s->conf.iothread = iothread;
    for (unsigned i = 0; i < 2; i++) {
        object_ref(OBJECT(iothread));
        object_unref(OBJECT(old));
    }
}

/* Nothing of the device is in an IOThread any more. */
static void forget_iothread(DataPlaneIOThreads *t, IOThread *iothread)
{
    VirtIOBlock *s = t->s;

    if (s->conf.iothread == iothread) {
        replace_property(s, home_of(t, 0)->iothread);
    }
    /* An IOThread is in a mapping once. */
    if (g_slist_find(s->vq_iothreads, iothread)) {
        s->vq_iothreads = g_slist_remove(s->vq_iothreads, iothread);
        object_unref(OBJECT(iothread));
    }
    object_unref(OBJECT(iothread));
}

void data_plane_iothreads_move(DataPlaneIOThreads *t, unsigned n)
{
    Home *home = home_of(t, n);
    VirtIOBlock *s = t->s;

    GLOBAL_STATE_CODE();
    if (!t->next[n].iothread) {
        return;
    }
    virtio_blk_fixed_buffers_leave(s, s->vq_aio_context[n]);
    if (!g_slist_find(t->left, home->iothread)) {
        t->left = g_slist_prepend(t->left, object_ref(OBJECT(home->iothread)));
    }
    home_clear(home);
    *home = t->next[n];
    t->next[n] = (Home) { };
    s->vq_aio_context[n] = iothread_get_aio_context(home->iothread);
}

bool data_plane_iothreads_is_left(DataPlaneIOThreads *t)
{
    GLOBAL_STATE_CODE();

    for (GSList *node = t->left; node; node = node->next) {
        if (!data_plane_iothreads_uses(t,
                                       iothread_get_aio_context(node->data))) {
            return true;
        }
    }
    return false;
}

void data_plane_iothreads_tidy(DataPlaneIOThreads *t)
{
    GSList *old = g_steal_pointer(&t->left);

    GLOBAL_STATE_CODE();
    for (GSList *node = old; node; node = node->next) {
        AioContext *ctx = iothread_get_aio_context(node->data);

        if (data_plane_iothreads_uses(t, ctx) ||
            blk_get_aio_context(t->s->blk) == ctx) {
            t->left = g_slist_prepend(t->left, node->data);
        } else {
            forget_iothread(t, node->data);
        }
    }
    g_slist_free(old);
}
