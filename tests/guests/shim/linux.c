// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The zero page, the memory map, and the way into Linux (Documentation/arch/x86/boot.rst, zero-page.rst). */
#include "shim.h"

enum { RSDP_AT = 0x70, E820_COUNT = 0x1e8, HEADER = 0x1f1, JUMP_LEN = 0x201, MAGIC_AT = 0x202, VERSION = 0x206 };
enum { LOADER = 0x210, LOAD_FLAGS = 0x211, CODE32 = 0x214, COMMAND_LINE = 0x228, XLOAD_FLAGS = 0x236 };
enum { COMMAND_LINE_MAX = 0x238, E820_TABLE = 0x2d0, E820_LEN = 20, HEADER_LIMIT = 0x290 };
enum { LOADED_HIGH = 1, KERNEL_64 = 1, LOADER_UNDEFINED = 0xff, SECTOR = 512, ENTRY_64 = 0x200 };
enum { RAM = 1, ACPI = 3, NVS = 4 };

#define MAGIC		0x53726448	/* "HdrS" */
#define MAX_E820	128

static u8 zero_page[PAGE] __attribute__((aligned(4096)));

static void add_memory(u64 start, u64 end, u32 kind)
{
	u8 *entry = zero_page + E820_TABLE + E820_LEN * zero_page[E820_COUNT];

	if (start >= end)
		return;
	/* Pieces of RAM that touch are one; where they were added or accepted is of no interest now. */
	if (zero_page[E820_COUNT]) {
		u8 *last = entry - E820_LEN;

		if (get32(last + 16) == kind && get64(last) + get64(last + 8) == start) {
			put64(last + 8, end - get64(last));
			return;
		}
	}
	if (zero_page[E820_COUNT] == MAX_E820)
		fail("too many pieces of memory", MAX_E820);
	put64(entry, start);
	put64(entry + 8, end - start);
	put32(entry + 16, kind);
	zero_page[E820_COUNT]++;
}

/* The top of low memory, from `acpi` on, is the firmware's. */
static void make_memory_map(u64 acpi, u64 nvs)
{
	for (u32 i = 0; i < range_count; i++) {
		u64 end = ranges[i].end;

		if (end == low_end) {
			add_memory(ranges[i].start, acpi, RAM);
			add_memory(acpi, nvs, ACPI);
			add_memory(nvs, end, NVS);
		} else {
			add_memory(ranges[i].start, end, RAM);
		}
	}
}

static void check_command_line(u32 max)
{
	const u8 *line = (const u8 *)PARAMETERS;
	u32 len = 0;

	while (len < PARAMETERS_SIZE && line[len])
		len++;
	if (len == PARAMETERS_SIZE)
		fail("the command line has no end within", len);
	if (len > max)
		fail("the kernel takes a command line of", max);
}

void boot_linux(u64 rsdp, u64 acpi, u64 nvs)
{
	const u8 *kernel = (const u8 *)PAYLOAD;
	u32 header_end = MAGIC_AT + kernel[JUMP_LEN], setup = (kernel[HEADER] ? kernel[HEADER] : 4) + 1;
	u64 code = PAYLOAD + setup * SECTOR;

	if (get32(kernel + MAGIC_AT) != MAGIC || (get32(kernel + VERSION) & 0xffff) < 0x20c ||
	    !(kernel[LOAD_FLAGS] & LOADED_HIGH) || !(kernel[XLOAD_FLAGS] & KERNEL_64) ||
	    header_end > HEADER_LIMIT)
		fail("no kernel with a 64-bit entry at", PAYLOAD);
	check_command_line(get32(kernel + COMMAND_LINE_MAX));
	copy(zero_page + HEADER, kernel + HEADER, header_end - HEADER);
	zero_page[LOADER] = LOADER_UNDEFINED;
	put32(zero_page + CODE32, (u32)code);
	put32(zero_page + COMMAND_LINE, PARAMETERS);
	put64(zero_page + RSDP_AT, rsdp);
	make_memory_map(acpi, nvs);
	say_number("shim: Linux at", code + ENTRY_64);
	enter_linux(code + ENTRY_64, (u64)zero_page);
}
