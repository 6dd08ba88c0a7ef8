# What the tests of the data plane need of a mainframe: see scripts/build
#
# Copyright (c) 2026 the virtio-blk data plane authors
#
# SPDX-License-Identifier: GPL-2.0-or-later

CONFIG_S390_CCW_VIRTIO=y
CONFIG_VIRTIO_BLK=y
