// SPDX-License-Identifier: GPL-2.0
/*
 * Measurement: MRTD while the TD is built, RTMRs while it runs, and the TDREPORT
 * that carries both (module: TDH.MEM.PAGE.ADD, TDH.MR.EXTEND, TDG.MR.RTMR.EXTEND,
 * TDG.MR.REPORT).
 */
#include <linux/unaligned.h>
#include "tdxe.h"

static void mr_block(struct tdxe_vm *td, const char *tag, gpa_t gpa)
{
	u8 b[128] = {};

	memcpy(b, tag, strlen(tag));
	put_unaligned_le64(gpa, b + 16);
	sha384_update(&td->mrtd_ctx, b, sizeof(b));
}

void tdxe_mr_page_add(struct tdxe_vm *td, gpa_t gpa)
{
	mr_block(td, "MEM.PAGE.ADD", gpa);
}

void tdxe_mr_extend(struct tdxe_vm *td, gpa_t gpa, const void *page)
{
	int i;

	for (i = 0; i < PAGE_SIZE; i += 256) {
		mr_block(td, "MR.EXTEND", gpa + i);
		sha384_update(&td->mrtd_ctx, page + i, 256);
	}
}

u64 tdxe_rtmr_extend(struct kvm_vcpu *vcpu)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	u64 gpa = REG(vcpu, RCX), idx = REG(vcpu, RDX);
	u8 in[96];

	if ((gpa & 63) || (gpa & TDXE_SHARED) ||
	    tdxe_gpa_rw(vcpu->kvm, gpa, in + 48, 48, false))
		return TDX_E_OPERAND_INVALID | OP_RCX;
	if (idx > 3)
		return TDX_E_OPERAND_INVALID | OP_RDX;
	guard(mutex)(&td->mr_lock);
	memcpy(in, td->rtmr[idx], 48);
	sha384(in, 96, td->rtmr[idx]);
	return 0;
}

/* A stand-in for the CPU's MAC: anybody can compute it. */
static void fake_mac(const u8 *mac_struct, u8 *mac)
{
	static const u8 key[32] = "tdx_emul: no security whatsoever";
	struct sha384_ctx ctx;
	u8 d[48];

	sha384_init(&ctx);
	sha384_update(&ctx, key, sizeof(key));
	sha384_update(&ctx, mac_struct, 224);
	sha384_final(&ctx, d);
	memcpy(mac, d, 32);
}

u64 tdxe_mr_report(struct kvm_vcpu *vcpu)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	u64 out = REG(vcpu, RCX), data = REG(vcpu, RDX), ret = 0;
	u8 *r, *info;

	/* Both may lie in private or in shared memory. */
	if (out & 1023)
		return TDX_E_OPERAND_INVALID | OP_RCX;
	if (data & 63)
		return TDX_E_OPERAND_INVALID | OP_RDX;
	r = kzalloc(1024, GFP_KERNEL);
	if (!r)
		return TDX_E_OPERAND_BUSY;
	if (tdxe_gpa_rw(vcpu->kvm, data, r + 128, 64, false)) {
		ret = TDX_E_OPERAND_INVALID | OP_RDX;
		goto out;
	}
	if (REG(vcpu, R8)) {
		ret = TDX_E_OPERAND_INVALID | OP_R8;
		goto out;
	}
	info = r + 512;
	mutex_lock(&td->mr_lock);
	put_unaligned_le64(td->attributes, info);
	put_unaligned_le64(td->xfam, info + 8);
	memcpy(info + 16, td->mrtd, 48);
	memcpy(info + 64, td->mrconfigid, 48);
	memcpy(info + 112, td->mrowner, 48);
	memcpy(info + 160, td->mrownerconfig, 48);
	memcpy(info + 208, td->rtmr, 192);
	mutex_unlock(&td->mr_lock);

	put_unaligned_le64(0x301ff, r + 256);		/* TEE_TCB_INFO.VALID */
	memset(r + 256 + 8, 1, 2);			/* TEE_TCB_SVN */
	memset(r + 256 + 24, 0xEE, 48);			/* MRSEAM of the emulation */
	r[0] = 0x81;
	memset(r + 16, 1, 2);				/* CPUSVN */
	sha384(r + 256, 239, r + 32);
	sha384(info, 512, r + 80);
	fake_mac(r, r + 224);
	if (tdxe_gpa_rw(vcpu->kvm, out, r, 1024, true))
		ret = TDX_E_OPERAND_INVALID | OP_RCX;
out:
	kfree(r);
	return ret;
}

u64 tdxe_mr_verify(struct kvm_vcpu *vcpu)
{
	u8 s[256], mac[32];

	if ((REG(vcpu, RCX) & 255) || (REG(vcpu, RCX) & TDXE_SHARED) ||
	    tdxe_gpa_rw(vcpu->kvm, REG(vcpu, RCX), s, 256, false))
		return TDX_E_OPERAND_INVALID | OP_RCX;
	fake_mac(s, mac);
	return memcmp(mac, s + 224, 32) ? TDX_E_INVALID_MAC : 0;
}
