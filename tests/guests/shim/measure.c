// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * The events of TD-Shim's boot, in its order: each goes into an RTMR and into the event log, which the CCEL points to.
 * Log: TCG PC Client Platform Firmware Profile, "Event Logging", with one SHA-384 digest for each event.
 */
#include "shim.h"

enum { EV_NO_ACTION = 3, EV_SEPARATOR = 4, EV_PLATFORM_CONFIG_FLAGS = 10 };
#define EV_EFI_PLATFORM_FIRMWARE_BLOB2 0x8000000a

/* Number of a register in the log; in TDG.MR.RTMR.EXTEND it is one less. */
enum { RTMR0 = 1, RTMR1 = 2 };
enum { ALGORITHM_SHA384 = 12, DIGEST_LEN = 48, NAME_LEN = 16 };

static u8 *log_at, *log_end;

static void append(const void *bytes, u32 len)
{
	if (len > (u64)(log_end - log_at))
		fail("no room in the event log for", len);
	copy(log_at, bytes, len);
	log_at += len;
}

static void append_number(u64 number, u32 len)
{
	append(&number, len);
}

void open_log(void *at, u32 len)
{
	log_at = at;
	log_end = log_at + len;
	/* What is not written reads as the end of the log. */
	fill(log_at, 0xff, len);
	append_number(0, 4);			/* register */
	append_number(EV_NO_ACTION, 4);
	for (int i = 0; i < 20; i++)
		append_number(0, 1);		/* no digest */
	append_number(33, 4);
	append("Spec ID Event03", 16);
	append_number(0, 4);			/* platform class */
	append("\x00\x02\x69\x02", 4);		/* version 2.0, errata, size of UINTN in units of 4 bytes */
	append_number(1, 4);			/* algorithms */
	append_number(ALGORITHM_SHA384, 2);
	append_number(DIGEST_LEN, 2);
	append_number(0, 1);			/* vendor's bytes */
}

/* Extends one register and starts its event; what the event says of `event_len` bytes follows. */
static void extend(u32 reg, u32 type, const void *bytes, u64 len, u32 event_len)
{
	static u8 digest[DIGEST_LEN] __attribute__((aligned(64)));
	u64 status;

	sha384(bytes, len, digest);
	status = rtmr_extend(digest, reg - 1);
	if (status)
		fail("cannot extend an RTMR, status", status);
	append_number(reg, 4);
	append_number(type, 4);
	append_number(1, 4);			/* digests */
	append_number(ALGORITHM_SHA384, 2);
	append(digest, DIGEST_LEN);
	append_number(event_len, 4);
}

/* TD_SHIM_PLATFORM_CONFIG_INFO: a name, the length, the data. */
static void measure_configuration(u32 reg, const char name[NAME_LEN], const void *bytes, u32 len)
{
	extend(reg, EV_PLATFORM_CONFIG_FLAGS, bytes, len, NAME_LEN + 4 + len);
	append(name, NAME_LEN);
	append_number(len, 4);
	append(bytes, len);
}

void measure_hobs(const void *bytes, u32 len)
{
	measure_configuration(RTMR0, (const char[NAME_LEN]){ "td_hob" }, bytes, len);
}

void measure_parameters(const void *bytes, u32 len)
{
	measure_configuration(RTMR1, (const char[NAME_LEN]){ "td_payload_info" }, bytes, len);
}

void measure_separator(void)
{
	const u32 zero = 0;

	for (u32 reg = RTMR0; reg <= RTMR1; reg++) {
		extend(reg, EV_SEPARATOR, &zero, 4, 4);
		append(&zero, 4);
	}
}

/* UEFI_PLATFORM_FIRMWARE_BLOB2: a description with its length, address, length. */
void measure_payload(const void *bytes, u64 len)
{
	static const char name[] = "td_payload";

	extend(RTMR1, EV_EFI_PLATFORM_FIRMWARE_BLOB2, bytes, len, 1 + sizeof(name) + 16);
	append_number(sizeof(name), 1);
	append(name, sizeof(name));
	append_number((u64)bytes, 8);
	append_number(len, 8);
}
