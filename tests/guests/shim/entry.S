/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * From the reset vector to C, the calls to the TDX module and the host, and the loop in which the other vCPUs wait.
 *
 * Every vCPU starts here at once. The page tables below map the first 4 GiB to themselves and stay in use until Linux
 * has its own.
 */
#include "../../emulated-tdx/guest/start.h"
#include "shim.h"

#define TDCALL		.byte 0x66, 0x0f, 0x01, 0xcc

#define TDG_VP_VMCALL		0
#define TDG_VP_INFO		1
#define TDG_MR_RTMR_EXTEND	2
#define TDG_MEM_PAGE_ACCEPT	6

#define VMCALL_CPUID		10
#define VMCALL_IO		30
#define VMCALL_FATAL_ERROR	0x10003

	.section .reset, "ax"
	.code32
	jmp	entry32

	.text
	.global	entry32
entry32:
	to_long_mode pml4, gdt_pointer, 0x10
	mov	%ecx, %edi			/* clears the upper halves */
	mov	%esi, %esi
	cld
	test	%esi, %esi
	jnz	other
	mov	$BOOT_STACK_END, %esp
	call	first_vcpu
	ud2

	/* One of the other vCPUs: helps to accept memory if it has a stack, then waits for Linux. */
other:
	cmp	$AP_STACKS, %esi
	ja	1f
	mov	%esi, %esp
	shl	$10, %rsp			/* AP_STACK_SIZE */
	mov	$BOOT_STACK_END, %eax
	add	%rax, %rsp
	call	other_vcpu
1:	/* This vCPU's APIC id as the host tells it: CPUID leaf 0xb, EDX. */
	xor	%r10d, %r10d
	mov	$VMCALL_CPUID, %r11d
	mov	$0xb, %r12d
	xor	%r13d, %r13d
	mov	$0xfc00, %ecx			/* R10 to R15 are passed on */
	mov	$TDG_VP_VMCALL, %eax
	TDCALL
	mov	%r15d, %ebp
	mov	$MAILBOX, %ebx
	/* No PAUSE: QEMU's TCG leaves its loop at each, and takes its big lock, which slows all other vCPUs down. */
2:	mov	MAILBOX_OS(%rbx), %rdx
	test	%rdx, %rdx
	jz	2b
	/* ACPI 6.5, 5.2.12.19: command, then whom it is for; cleared when it is obeyed. */
3:	cmpw	$1, (%rdx)
	jne	3b
	cmp	%ebp, 4(%rdx)
	jne	3b
	mov	8(%rdx), %rax
	movw	$0, (%rdx)
	jmp	*%rax

	/* report_fatal(text): 64 bytes of text in registers (GHCI, ReportFatalError). */
	.global	report_fatal
report_fatal:
	mov	%rdi, %rax
	mov	0(%rax), %r14
	mov	8(%rax), %r15
	mov	16(%rax), %rbx
	mov	24(%rax), %rdi
	mov	32(%rax), %rsi
	mov	40(%rax), %r8
	mov	48(%rax), %r9
	mov	56(%rax), %rdx
	xor	%r10d, %r10d
	mov	$VMCALL_FATAL_ERROR, %r11d
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	mov	$0xffcc, %ecx			/* RDX, RBX, RSI, RDI, R8 to R15 */
	mov	$TDG_VP_VMCALL, %eax
	TDCALL
	ud2

	.global	page_accept
page_accept:
	mov	%rdi, %rcx
	mov	$TDG_MEM_PAGE_ACCEPT, %eax
	TDCALL
	ret

	.global	rtmr_extend
rtmr_extend:
	mov	%rdi, %rcx
	mov	%rsi, %rdx
	mov	$TDG_MR_RTMR_EXTEND, %eax
	TDCALL
	ret

	.global	vcpu_count
vcpu_count:
	mov	$TDG_VP_INFO, %eax
	TDCALL
	mov	%r8d, %eax
	ret

	.global	port_write
port_write:
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	xor	%r10d, %r10d
	mov	$VMCALL_IO, %r11d
	mov	$1, %r12d			/* bytes */
	mov	$1, %r13d			/* a write */
	mov	%rdi, %r14
	mov	%rsi, %r15
	mov	$0xfc00, %ecx
	mov	$TDG_VP_VMCALL, %eax
	TDCALL
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	ret

	/* The boot protocol wants code at 0x10 and data at 0x18, which is how they are since entry32. */
	.global	enter_linux
enter_linux:
	cli
	mov	%rdi, %rax
	xor	%ebx, %ebx
	xor	%ebp, %ebp
	xor	%edi, %edi
	jmp	*%rax

	.section .rodata
	.balign	8
gdt:	.quad	0, 0
	.quad	0x00af9b000000ffff		/* 0x10: 64-bit code */
	.quad	0x00cf93000000ffff		/* 0x18: data */
gdt_pointer:
	.word	. - gdt - 1
	.quad	gdt

	/* The processor sets the accessed bits, so these are not read-only. */
	.section .tables, "aw"
	.balign	4096
pml4:	.quad	pdpt + 0x63
	.fill	511, 8, 0
pdpt:	.quad	directories + 0x0063, directories + 0x1063, directories + 0x2063, directories + 0x3063
	.fill	508, 8, 0
directories:
	.set	page, 0
	.rept	2048
	.quad	page + 0xe3			/* present, writable, accessed, dirty, 2 MiB */
	.set	page, page + 0x200000
	.endr

	.section .note.GNU-stack, "", @progbits
