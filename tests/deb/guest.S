# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
#
# A guest of one sector: it writes its disk, reads it back and compares, for ever
#
# It lets the firmware do it (INT 13h, by SeaBIOS's driver), sector after sector
# of the first 64 behind its own. On the serial port it says "." for every 4
# that were right, and "X" once, when one was not. The counter is in memory, so
# that a guest that was saved knows what is on its disk. FROM_NETWORK is defined
# for a guest that firmware loads by TFTP, and does not tell the first disk's
# number.

    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
.ifdef FROM_NETWORK
    movb $0x80, %dl
.endif
    movb %dl, drive

next:
    incl counter
    movl counter, %eax
    andl $63, %eax
    incl %eax
    movl %eax, sector

    # What was written when this sector's turn came last must still be there.
    movl counter, %eax
    subl $64, %eax
    jbe write
    movb $0x42, %ah
    call disk
    movl counter, %eax
    subl $64, %eax
    call compare

write:
    movl counter, %eax
    movw $buffer, %di
    movw $128, %cx
    rep stosl
    movb $0x43, %ah
    call disk
    movw $buffer, %di
    movw $128, %cx
    xorl %eax, %eax
    rep stosl
    movb $0x42, %ah
    call disk
    movl counter, %eax
    call compare

    testb $3, counter
    jnz next
    movb $'.', %al
    call say
    jmp next

# disk: a request of the firmware's, AH
disk:
    xorb %al, %al
    movb drive, %dl
    movw $packet, %si
    int $0x13
    jc wrong
    ret

# compare: the buffer is full of EAX
compare:
    movw $buffer, %di
    movw $128, %cx
    repe scasl
    jne wrong
    ret

wrong:
    movb $'X', %al
    call say
stop:
    hlt
    jmp stop

# say: AL, on the serial port
say:
    movb %al, %ah
    movw $0x3fd, %dx
busy:
    inb %dx, %al
    testb $0x20, %al
    jz busy
    movw $0x3f8, %dx
    movb %ah, %al
    outb %al, %dx
    ret

drive:
    .byte 0
    .balign 4
counter:
    .long 0
packet:
    .byte 16, 0
    .word 1
    .word buffer, 0
sector:
    .quad 0

    .org 510
    .word 0xaa55
    .set buffer, 0x8000
