/*
 * The two ring formats: what vring-split.c and vring-packed.c offer to vring.c
 *
 * Not for devices.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_FORMAT_H
#define HW_VIRTIO_DATAPLANE_VRING_FORMAT_H

#include "hw/virtio/dataplane/vring.h"

/* Vring.event_flags when unknown: a value that no packed ring has */
#define VRING_EVENT_FLAGS_UNKNOWN 0xffff

/*
 * vring.h describes the function vring_NAME() for each NAME here.  init checks
 * the configuration and sets up what depends on the format.  pop marks the
 * Vring broken if it fails, so that vring_pop() can end in it.  push counts the
 * element in Vring.unpublished, likewise.
 */
bool vring_split_init(Vring *vring, Error **errp);
int vring_split_pop(Vring *vring, VirtQueueElement *elem, VringVectors *vecs);
void vring_split_unpop(Vring *vring);
void vring_split_push(Vring *vring, unsigned id, uint32_t len);
void vring_split_publish(Vring *vring);
bool vring_split_should_notify(Vring *vring);
void vring_split_disable_notification(Vring *vring);
bool vring_split_enable_notification(Vring *vring);
bool vring_split_more_avail(Vring *vring);

bool vring_packed_init(Vring *vring, Error **errp);
int vring_packed_pop(Vring *vring, VirtQueueElement *elem, VringVectors *vecs);
void vring_packed_unpop(Vring *vring, unsigned ndescs);
void vring_packed_push(Vring *vring, unsigned id, unsigned ndescs,
                       uint32_t len);
void vring_packed_publish(Vring *vring);
bool vring_packed_should_notify(Vring *vring);
void vring_packed_disable_notification(Vring *vring);
bool vring_packed_enable_notification(Vring *vring);
bool vring_packed_more_avail(Vring *vring);

#endif /* HW_VIRTIO_DATAPLANE_VRING_FORMAT_H */
