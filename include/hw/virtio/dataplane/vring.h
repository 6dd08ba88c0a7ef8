/*
 * The device side of one virtqueue
 *
 * Knows the VIRTIO rings and guest memory.  Does not know block devices or
 * AioContexts: the owner of a Vring chooses the thread, and calls for one Vring
 * must never overlap.
 *
 * Life of a Vring:
 *
 *   vring_setup()                  takes the queue over from QEMU's VirtQueue
 *     vring_refresh_memory()       for each batch, and when memory changes
 *     vring_disable_notification()
 *     vring_pop()                  until it returns 0
 *     vring_enable_notification()  true: look again
 *     vring_push()                 per request that is done; or vring_detach()
 *                                  or vring_unpop() instead
 *     vring_publish()              shows them to the driver, all at once
 *     vring_should_notify()        once after the last publish of a batch
 *   vring_teardown()               hands the queue back
 *
 * The objects: who owns them, what they point to, and how long they live
 *
 *   plane, from its start to its stop
 *     VringMemory         follows the RAM of an address space
 *       VringRamTable     the current list of RAM: counted, never changed, and
 *                         replaced when RAM comes or goes
 *         VringRamRegion  one piece of RAM, with a reference to it
 *   queue
 *     Vring               from vring_setup() to vring_teardown()
 *       VringArea         three: where the ring itself is.  Points into the
 *                         VringRamTable, or owns a VringRamRegion per page.
 *       VringRamRef       counts the elements that use a VringRamTable, and has
 *                         a reference to that.  The Vring points to the current
 *                         one; an old one is freed with its last element.
 *       VringOrderEntry   one per ring entry, with VIRTIO_F_IN_ORDER
 *   caller of vring_pop()
 *     VirtQueueElement    the buffer that was popped; its vectors are in the
 *                         VringVectors, until both are pushed, detached or put
 *                         back
 *     VringVectors        the arrays of the element's vectors.  Points to the
 *                         VringRamRef that keeps their memory alive; to none
 *                         after vring_pin().
 *   vring_pop() while it runs
 *     VringChain          becomes the element: what has been read so far
 *     VringDescTable      where descriptors are read: the ring, or an indirect
 *                         table
 *     VringDesc           copy of a descriptor
 *
 * If a driver breaks the rules, vring_pop() returns an error.  From then on
 * the Vring is broken: it takes and publishes nothing until it is set up
 * again, which takes a device reset.  A ring whose memory was removed is not
 * broken but lost: vring_pop() returns an error until the memory returns.
 * Elements that are pushed meanwhile are dropped, and then the device needs a
 * reset, too.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_H
#define HW_VIRTIO_DATAPLANE_VRING_H

#include "hw/virtio/virtio.h"
#include "hw/virtio/dataplane/vring-memory.h"

/*
 * What a driver can do wrong.  The policy is the same for all: the device
 * needs a reset (DEVICE_NEEDS_RESET, VIRTIO 1.3, 2.1.2).
 */
typedef enum VringError {
    VRING_ERR_AVAIL_IDX = 1,    /* available index more than a ring ahead */
    VRING_ERR_HEAD,             /* available entry is not a descriptor */
    VRING_ERR_QUEUE_FULL,       /* more buffers in flight than the queue has */
    VRING_ERR_NEXT,             /* next is not a descriptor */
    VRING_ERR_LOOP,             /* chain longer than its table */
    VRING_ERR_UNAVAILABLE,      /* list continues in an unavailable one */
    VRING_ERR_TOO_LONG,         /* more than VIRTQUEUE_MAX_SIZE vectors */
    VRING_ERR_ORDER,            /* device-readable behind device-writable */
    VRING_ERR_ADDRESS,          /* buffer is not in accessible memory */
    VRING_ERR_LENGTH,           /* chain describes 2^32 bytes or more */
    VRING_ERR_INDIRECT_FEATURE, /* indirect table without the feature */
    VRING_ERR_INDIRECT_NESTED,  /* indirect table within another */
    VRING_ERR_INDIRECT_NEXT,    /* INDIRECT and NEXT in one descriptor */
    VRING_ERR_TABLE_LENGTH,     /* table length 0, uneven, or too large */
    VRING_ERR_TABLE_ADDRESS,    /* indirect table is not in RAM */
    VRING_ERR_RING_LOST,        /* the ring's memory was removed */
    VRING_ERR__MAX,
} VringError;

/*
 * Vectors that need no allocation: enough for a header, a status, and 64 KiB in
 * pages.
 */
#define VRING_INLINE_VECTORS 18

/*
 * A reference to a table that all elements of a Vring share: @inflight of them
 * point into the table.  Only the last one drops the reference, so that an
 * element costs no atomic operation.
 */
typedef struct VringRamRef {
    VringRamTable *table;
    unsigned inflight;
} VringRamRef;

/* What an element's vectors point to if no VringRamRef keeps that alive */
typedef enum VringMapping {
    VRING_MAPPED,       /* guest RAM, with one reference per vector */
    VRING_BOUNCED,      /* same, or copies of what is not RAM */
    VRING_UNMAPPED,     /* nothing: only guest addresses and lengths are set */
} VringMapping;

/* VringVectors.region: any, and not the same for all vectors */
#define VRING_ANY_REGION UINT32_MAX

/*
 * The arrays of an element's vectors.  @ram_ref keeps the memory alive that the
 * vectors point to; if it is NULL, @mapping tells what they point to.
 *
 * Behind @capacity vectors there are as many guest addresses, allocated or not:
 * see vring_vectors_addr().
 */
typedef struct VringVectors {
    VringRamRef *ram_ref;
    uint32_t region;            /* that all are in; with @ram_ref */
    uint16_t capacity;
    uint8_t mapping;            /* VringMapping; MAPPED while not in use */
    struct iovec *iov;
    struct iovec inline_iov[VRING_INLINE_VECTORS];
    hwaddr inline_addr[VRING_INLINE_VECTORS];
} VringVectors;

/*
 * One of the three areas of a virtqueue (VIRTIO 1.3, 2.6).  Only the ring
 * format knows what is in it.  Usually it is contiguous in the host.  Behind
 * an IOMMU each page may be elsewhere.
 */
typedef struct VringArea {
    uint8_t *host;              /* NULL: the area lies in pages */
    union {
        const VringRamRegion *region;   /* that @host is in */
        VringRamRegion *pages;          /* each with a reference */
    };
    uint32_t size;              /* bytes */
    uint32_t npages;
} VringArea;

/* An element in flight, with VIRTIO_F_IN_ORDER */
typedef struct VringOrderEntry {
    uint32_t len;               /* bytes written, if @done */
    uint16_t id;
    uint16_t ndescs;            /* slots of the ring that it takes */
    bool done;                  /* waits for those before it */
    bool detached;              /* @done, but the driver must not see it */
} VringOrderEntry;

typedef struct VringConfig {
    unsigned num;               /* queue size; split: a power of two */
    hwaddr desc;                /* guest addresses of the three areas, */
    hwaddr avail;               /* packed: the driver's event structure */
    hwaddr used;                /* packed: the device's event structure */
    bool packed;                /* negotiated features */
    bool in_order;
    bool event_idx;
    bool indirect;
    bool notify_on_empty;
    bool big_endian;            /* byte order of a split ring */
    bool bounce;                /* the owner maps what is not RAM */
} VringConfig;

typedef struct Vring {
    /* Read by each operation, written by setup and memory changes only. */
    VringArea desc;
    VringArea avail;            /* packed: driver event suppression */
    VringArea used;             /* packed: device event suppression */
    VringRamRef *ram_ref;
    VringMemory *mem;
    VringOrderEntry *order;     /* by position in the ring; NULL: any order */
    VringConfig config;
    uint16_t mask;              /* split: config.num - 1 */
    bool swap;                  /* ring is not in host byte order */
    bool lost;                  /* not all of its areas are in RAM; atomic */

    /*
     * Written by each operation, in the owner's context.  Others look at the
     * positions meanwhile: see vring_look().
     */
    bool broken;
    bool dropped;               /* pushed while lost or broken; atomic */
    bool signalled_used_valid;
    bool avail_wrap;            /* packed: wrap counters of the positions */
    bool used_wrap;
    uint16_t last_avail_idx;    /* next entry to pop */
    uint16_t shadow_avail_idx;  /* split: the driver's index when last read */
    uint16_t used_idx;          /* next entry to fill */
    uint16_t signalled_used;    /* split: what was visible at the last check */
    uint16_t first_flags;       /* packed: of the first unpublished element */
    uint16_t event_flags;       /* packed: ours, as the driver sees them */
    uint16_t order_head;        /* slot of the oldest element, with @order */
    unsigned unpublished;       /* elements pushed and not yet visible */
    unsigned unpublished_slots; /* packed: their descriptors */
    unsigned unsignalled_slots; /* packed: published since the last check */
    unsigned inuse;             /* slots popped and not yet returned */
    unsigned region_hint;       /* see vring_ram_table_find() */
} Vring;

/**
 * vring_error_str: describe an error for a message
 */
const char *vring_error_str(VringError err);

/**
 * vring_open: set up a Vring with the positions of a queue after a reset
 * @vring: contents are overwritten
 * @config: copied; must satisfy VIRTIO 1.3, 2.7 and 2.7.1, or 2.8 and 2.8.10.1
 * @mem: guest memory; outlives the Vring
 *
 * Returns: false if an area is not in RAM, which leaves @vring->lost true, or
 *          not aligned, or if the format does not allow the size; nothing is
 *          held then
 *
 * Pair: vring_close().  Devices call vring_setup() instead.
 *
 * Context: no other call for @vring meanwhile
 */
bool vring_open(Vring *vring, const VringConfig *config, VringMemory *mem,
                Error **errp);

/**
 * vring_close: the pair of vring_open()
 *
 * Each element must have been pushed, detached or pinned.
 */
void vring_close(Vring *vring);

/**
 * vring_setup: take a virtqueue over from QEMU's VirtQueue
 * @vring: contents are overwritten
 * @vdev: the device
 * @n: index of the queue, which the driver has enabled
 * @mem: guest memory of @vdev; outlives the Vring
 *
 * Returns: false with @errp set, and the VirtQueue unchanged, if a Vring cannot
 *          serve this kind of queue.  If QEMU's own path could not serve it
 *          either, because its rings are not in RAM or its size was changed in
 *          use, the device is marked broken, and the caller must call
 *          virtio_error().
 *
 * Pair: vring_teardown()
 *
 * Context: BQL held
 */
bool vring_setup(Vring *vring, VirtIODevice *vdev, int n, VringMemory *mem,
                 Error **errp);

/**
 * vring_teardown: hand a virtqueue back to QEMU's VirtQueue
 *
 * The caller has published all elements that it pushed, and pinned those that
 * are still in flight.
 *
 * Pair: vring_setup()
 *
 * Context: BQL held, drained
 */
void vring_teardown(Vring *vring, VirtIODevice *vdev, int n);

/**
 * vring_look: where the device is in a ring that may be in use
 * @state: filled in, but for used_elems
 *
 * Shows what the driver can see: an element that was pushed and not published
 * is still in use.  Never waits.  The positions belong together if the ring
 * stands still for a moment, as it does in a thread that hangs; if not, each
 * one was true by itself.  The Vring is not torn down meanwhile.
 *
 * Context: any thread
 */
void vring_look(const Vring *vring, VirtQueueRingState *state);

/**
 * vring_refresh_memory: use the current memory table
 *
 * Call this at the start of each batch and after each change of memory.  It
 * costs one load if nothing has changed.  Otherwise it publishes first what was
 * pushed.  If the ring's areas are gone the Vring is lost, which vring_pop()
 * reports, until they return.
 *
 * Returns: number of elements that became visible, like vring_publish()
 *
 * Context: the queue's AioContext
 */
unsigned vring_refresh_memory(Vring *vring);

/**
 * vring_vectors_init: prepare for the first element
 * Pair: vring_vectors_release()
 */
void vring_vectors_init(VringVectors *vecs);

/* Part of vring_vectors_release() */
void vring_vectors_free(VringVectors *vecs);

/**
 * vring_vectors_release: free what vring_pop() allocated
 * @vecs: its element was pushed, detached or put back; can be used again
 *
 * Pair: vring_vectors_init()
 */
static inline void vring_vectors_release(VringVectors *vecs)
{
    if (unlikely(vecs->iov != vecs->inline_iov)) {
        vring_vectors_free(vecs);
    }
}

/**
 * vring_vectors_addr: the guest addresses of the vectors
 */
static inline hwaddr *vring_vectors_addr(const VringVectors *vecs)
{
    return (hwaddr *)(vecs->iov + vecs->capacity);
}

/**
 * vring_vectors_spare: vectors that a popped element does not use
 * @elem: popped with @vecs
 * @num: set to their number
 *
 * Returns: the first of them; the caller's until vring_vectors_release()
 */
static inline struct iovec *vring_vectors_spare(const VringVectors *vecs,
                                                const VirtQueueElement *elem,
                                                unsigned *num)
{
    unsigned used = elem->out_num + elem->in_num;

    *num = vecs->capacity - used;
    return vecs->iov + used;
}

/**
 * vring_pop: take the next available buffer
 * @vring: set up
 * @elem: filled in; its vectors lie in @vecs
 * @vecs: initialised, not in use
 *
 * Reads each field of guest memory once, and uses the copy that it has checked.
 * On error @vecs is unused again and the Vring is broken, unless the error is
 * -VRING_ERR_RING_LOST.
 *
 * With VringConfig.bounce an element that is not wholly in RAM stays unmapped:
 * see vring_is_mapped().  Otherwise it is an error.
 *
 * Returns: 1 if @elem was filled in, 0 if nothing is available or the Vring
 *          is broken already, else a negative VringError
 *
 * Pair: vring_push() or vring_detach(), or immediately vring_unpop()
 *
 * Context: the queue's AioContext
 */
int vring_pop(Vring *vring, VirtQueueElement *elem, VringVectors *vecs);

/**
 * vring_pop_full: vring_pop() for a caller that has no element left
 *
 * The caller has as many elements in flight as the queue has entries.  If the
 * driver makes one more available that is its mistake.
 *
 * Returns: 0 if nothing is available, else a negative VringError
 *
 * Context: the queue's AioContext
 */
int vring_pop_full(Vring *vring);

/**
 * vring_push: put a used element into the ring, not yet visible to the driver
 * @elem: from vring_pop() or, with @vecs NULL, mapped by QEMU's virtqueue code
 * @vecs: what vring_pop() used for @elem; not mapped afterwards
 * @len: bytes written from the first device-writable one on (2.7.8.2)
 *
 * Marks all device-writable memory of @elem dirty.  If the Vring is broken or
 * lost, only unmaps the element: the driver never sees it.  With
 * VIRTIO_F_IN_ORDER an element waits for all that were popped before it.
 *
 * Pair: vring_pop()
 *
 * Context: the queue's AioContext
 */
void vring_push(Vring *vring, const VirtQueueElement *elem, VringVectors *vecs,
                uint32_t len);

/**
 * vring_push_disabled: return a popped element of a device that may not access
 * its ring
 *
 * The driver never sees it again, unless the order is promised
 * (VIRTIO_F_IN_ORDER): then it waits for this element before any later one, and
 * gets it with the next one that is pushed after the device has been enabled.
 *
 * Pair: vring_pop()
 *
 * Context: the queue's AioContext
 */
void vring_push_disabled(Vring *vring, const VirtQueueElement *elem,
                         VringVectors *vecs, uint32_t len);

/**
 * vring_detach: give up a popped element, which the driver never sees again
 *
 * Pair: vring_pop()
 *
 * Context: the queue's AioContext, or drained
 */
void vring_detach(Vring *vring, const VirtQueueElement *elem,
                  VringVectors *vecs);

/**
 * vring_unpop: put the element that was popped last back into the ring
 *
 * This Vring, or the next owner of the queue, pops it again.
 *
 * Pair: vring_pop()
 *
 * Context: the queue's AioContext, or drained
 */
void vring_unpop(Vring *vring, const VirtQueueElement *elem,
                 VringVectors *vecs);

/**
 * vring_is_mapped: do the vectors of a popped element point to memory?
 *
 * If not, the owner maps each vector with dma_memory_map(), which needs the
 * BQL, and calls vring_set_bounced().  It can also give the element up
 * unmapped.
 *
 * Context: any thread
 */
static inline bool vring_is_mapped(const VringVectors *vecs)
{
    return likely(vecs->ram_ref) || vecs->mapping != VRING_UNMAPPED;
}

/**
 * vring_set_bounced: note that the owner has mapped an element
 * @iov: as many vectors as @elem has, device-readable ones first
 *
 * If a device-writable vector is a copy, the owner must unmap all vectors with
 * dma_memory_unmap(), which needs the BQL, and call vring_set_unmapped(),
 * before it calls vring_push().  Otherwise vring_push() unmaps them.
 * vring_detach() and vring_unpop() always do, and write no copy back.
 *
 * Pair: vring_set_unmapped()
 *
 * Context: no other call for @elem meanwhile
 */
void vring_set_bounced(const VirtQueueElement *elem, VringVectors *vecs,
                       const struct iovec *iov);

/**
 * vring_is_bounced: has the owner mapped an element?
 *
 * Context: any thread
 */
static inline bool vring_is_bounced(const VringVectors *vecs)
{
    return unlikely(!vecs->ram_ref) && vecs->mapping == VRING_BOUNCED;
}

/**
 * vring_set_unmapped: note that the owner has unmapped an element
 *
 * Pair: vring_set_bounced()
 *
 * Context: no other call for @elem meanwhile
 */
static inline void vring_set_unmapped(VringVectors *vecs)
{
    vecs->mapping = VRING_UNMAPPED;
}

/**
 * vring_pin: make an element's mappings independent of the Vring
 *
 * Afterwards QEMU's virtqueue code can push, detach and migrate the element,
 * and the Vring can be torn down.
 *
 * Context: the queue's AioContext, or drained
 */
void vring_pin(Vring *vring, const VirtQueueElement *elem, VringVectors *vecs);

/**
 * vring_publish: show the driver all that was pushed
 *
 * Returns: number of elements that became visible; if not 0, the caller must
 *          call vring_should_notify(), now or after it has published more
 *
 * Context: the queue's AioContext
 */
unsigned vring_publish(Vring *vring);

/**
 * vring_unpublished: number of elements that vring_publish() would show
 *
 * Context: the queue's AioContext
 */
static inline unsigned vring_unpublished(const Vring *vring)
{
    return vring->unpublished;
}

/**
 * vring_should_notify: does the driver want a used buffer notification?
 *
 * Considers all elements that were published since the last call.
 *
 * Context: the queue's AioContext
 */
bool vring_should_notify(Vring *vring);

/**
 * vring_disable_notification: ask for no available buffer notifications
 *
 * Only a hint: the driver may still send them.
 *
 * Pair: vring_enable_notification()
 *
 * Context: the queue's AioContext
 */
void vring_disable_notification(Vring *vring);

/**
 * vring_enable_notification: ask for available buffer notifications
 *
 * Returns: true if buffers became available before the driver could see this:
 *          it sends no notification for them, so look at the ring again
 *
 * Pair: vring_disable_notification()
 *
 * Context: the queue's AioContext
 */
bool vring_enable_notification(Vring *vring);

/**
 * vring_more_avail: is there a buffer to pop?
 *
 * Context: the queue's AioContext
 */
bool vring_more_avail(Vring *vring);

#endif /* HW_VIRTIO_DATAPLANE_VRING_H */
