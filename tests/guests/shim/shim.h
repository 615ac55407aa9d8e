/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A small firmware that keeps TD-Shim's contract for booting Linux: sections for kernel and command line, a TD HOB
 * with memory, payload and ACPI tables, RTMRs and event log, a mailbox for the other vCPUs.
 *
 * It is stricter than TD-Shim on purpose. It is there to test the VMM, so whatever the VMM hands over is checked, and
 * what is wrong ends the TD with a report that says so.
 *
 * The image has 256 KiB and ends at 4 GiB. The first half of the file is empty; its addresses are working memory.
 *
 *	0xfffc0000  mailbox: what the vCPUs tell each other until Linux runs
 *	0xfffc1000  stacks: the first vCPU's, then 1 KiB for each other
 *	0xfffd0000  variables
 *	0xfffe0000  code, page tables; at the end metadata and reset vector (the BFV)
 */
#ifndef SHIM_H
#define SHIM_H

#define IMAGE		0xfffc0000
#define MAILBOX		0xfffc0000
#define STACKS		0xfffc1000
#define STACKS_SIZE	0xf000
#define BOOT_STACK_END	0xfffc5000
#define AP_STACK_SIZE	0x400
#define AP_STACKS	44		/* vCPUs above this number do not help to accept memory */
#define VARIABLES	0xfffd0000
#define VARIABLES_SIZE	0x10000
#define BFV		0xfffe0000
#define BFV_OFFSET	0x20000		/* in the file */
#define BFV_SIZE	0x20000
/* See shim.ld. */
#define DESCRIPTOR	0xfffff010
#define DESCRIPTOR_OFFSET 0x3f010
#define TD_INFO_OFFSET	0x3f200

/* As in TD-Shim's layout for Linux, but for the size of the payload. */
#define TD_HOB		0x800000
#define TD_HOB_SIZE	0x20000
#define PARAMETERS	0x860000
#define PARAMETERS_SIZE	0x1000
#define PAYLOAD		0x861000
#define PAYLOAD_SIZE	0x1000000

/* Taken from the top of low memory, ascending. */
#define ACPI_SIZE	0x20000
#define OS_MAILBOX_SIZE	0x1000
#define EVENT_LOG_SIZE	0x20000

/* In the mailbox page. */
#define MAILBOX_WORK	0		/* u32: the others may accept memory */
#define MAILBOX_DONE	4		/* u32: how many have nothing left to accept */
#define MAILBOX_OS	8		/* u64: the mailbox that Linux knows, once there is one */

#ifndef __ASSEMBLER__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE		4096UL
#define LARGE_PAGE	(2UL << 20)
#define LOW_END		(1UL << 32)
#define COUNT(array)	(sizeof(array) / sizeof((array)[0]))

/* entry.S */
_Noreturn void report_fatal(const char *text);
_Noreturn void enter_linux(u64 entry, u64 zero_page);
u64 page_accept(u64 gpa_and_level);
u64 rtmr_extend(const void *digest, u64 index);
u64 vcpu_count(void);
void port_write(u64 port, u64 byte);

/* memory.c */
struct range {
	u64 start, end;
	u32 kind;
};

enum { ADDED = 0, UNACCEPTED = 7 };
#define MAX_RANGES	32
extern struct range ranges[MAX_RANGES];
extern u32 range_count;
extern u64 low_end;
void accept_memory(u32 vcpus);

/* hob.c */
struct table {
	const u8 *bytes;
	u32 len;
};

#define MAX_TABLES	16
extern struct table tables[MAX_TABLES];
extern u32 table_count;
extern u32 hob_len;
void read_hobs(void);

/* acpi.c */
u64 install_tables(u64 at, u64 os_mailbox, u64 event_log, u32 vcpus);

/* measure.c */
void open_log(void *at, u32 len);
void measure_hobs(const void *bytes, u32 len);
void measure_separator(void);
void measure_payload(const void *bytes, u64 len);
void measure_parameters(const void *bytes, u32 len);

/* sha384.c */
void sha384(const void *bytes, u64 len, u8 digest[48]);

/* linux.c */
_Noreturn void boot_linux(u64 rsdp, u64 acpi, u64 nvs);

/* text.c */
_Noreturn void fail(const char *what, u64 number);
void say(const char *text);
void say_number(const char *text, u64 number);
void copy(void *to, const void *from, u64 len);
void fill(void *to, u8 byte, u64 len);
int same(const void *a, const void *b, u64 len);

/* Little-endian fields at any alignment. */
static inline u32 get32(const u8 *at)
{
	u32 value;

	__builtin_memcpy(&value, at, 4);
	return value;
}

static inline u64 get64(const u8 *at)
{
	u64 value;

	__builtin_memcpy(&value, at, 8);
	return value;
}

static inline void put32(u8 *at, u32 value)
{
	__builtin_memcpy(at, &value, 4);
}

static inline void put64(u8 *at, u64 value)
{
	__builtin_memcpy(at, &value, 8);
}

#endif
#endif
