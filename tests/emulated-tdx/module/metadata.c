// SPDX-License-Identifier: GPL-2.0
/*
 * Metadata that a guest can read and write: TDG.VM.RD, TDG.VM.WR, TDG.SYS.RD.
 * Departs: a handful of fields; the module has hundreds.
 */
#include "tdxe.h"

/* Metadata fields by class and field code; the module ignores the rest of an id. */
#define FLD(id)		((id) & (GENMASK_ULL(61, 56) | GENMASK_ULL(23, 0)))
#define FLD_RESERVED	(GENMASK_ULL(31, 24) | GENMASK_ULL(49, 47) | BIT_ULL(55) | BIT_ULL(62))
#define FLD_CONFIG_FLAGS	FLD(0x1110000300000016ULL)
#define FLD_TD_CTLS	FLD(0x1110000300000017ULL)
#define FLD_NOTIFY	FLD(0x9110000300000010ULL)
#define FLD_TOPOLOGY	FLD(0x9100000000000019ULL)
#define FLD_ATTRIBUTES	FLD(0x1110000300000000ULL)
#define FLD_XFAM		FLD(0x1110000300000001ULL)
#define FLD_NONE		~0ULL

static const u64 td_fields[] = {
	0x1110000300000000ULL, 0x1110000300000001ULL, 0x9110000300000010ULL,
	0x1110000300000016ULL, 0x1110000300000017ULL, 0x9110000300000019ULL,
};

static const u64 sys_fields[] = {
	0x0800000200000000ULL, 0x0800000100000003ULL, 0x0800000100000004ULL,
	0x0A00000300000008ULL,
};

static u64 next_field(const u64 *ids, int n, u64 id)
{
	int i;

	for (i = 0; i < n; i++)
		if (FLD(ids[i]) == FLD(id))
			return i + 1 < n ? ids[i + 1] : FLD_NONE;
	return FLD_NONE;
}

u64 tdxe_vm_rd(struct kvm_vcpu *vcpu)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	bool v1 = (REG(vcpu, RAX) >> 16) & 0xff;
	u64 id = REG(vcpu, RDX), val;

	REG(vcpu, R8) = 0;
	if (v1)
		REG(vcpu, RDX) = FLD_NONE;
	if (REG(vcpu, RCX))
		return TDX_E_OPERAND_INVALID | OP_RCX;
	if (v1 && id == FLD_NONE) {
		REG(vcpu, RDX) = td_fields[0];
		return TDX_E_FIRST_FIELD;
	}
	if (id & FLD_RESERVED)
		return TDX_E_FIELD_ID;
	switch (FLD(id)) {
	case FLD_CONFIG_FLAGS:	val = BIT(2); break;		/* NO_RBP_MOD */
	case FLD_TD_CTLS:		val = td->td_ctls; break;
	case FLD_NOTIFY:		val = td->notify_enables; break;
	case FLD_TOPOLOGY:	val = 1; break;
	case FLD_ATTRIBUTES:	val = td->attributes; break;
	case FLD_XFAM:		val = td->xfam; break;
	default:
		return TDX_E_FIELD_ID;
	}
	if (v1)
		REG(vcpu, RDX) = next_field(td_fields, ARRAY_SIZE(td_fields), id);
	REG(vcpu, R8) = val;
	return 0;
}

u64 tdxe_vm_wr(struct kvm_vcpu *vcpu)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	u64 id = REG(vcpu, RDX), val = REG(vcpu, R8), mask = REG(vcpu, R9), old;

	REG(vcpu, R8) = 0;
	if (REG(vcpu, RCX))
		return TDX_E_OPERAND_INVALID | OP_RCX;
	if (id & FLD_RESERVED)
		return TDX_E_FIELD_ID;
	switch (FLD(id)) {
	case FLD_TD_CTLS:
		/* ENUM_TOPOLOGY only; no FLEXIBLE_PENDING_VE, no REDUCE_VE. */
		old = td->td_ctls;
		if ((val ^ old) & mask & ~TDXE_CTL_TOPOLOGY)
			return TDX_E_FIELD_VALUE;
		td->td_ctls = (old & ~mask) | (val & mask);
		break;
	case FLD_NOTIFY:
		old = td->notify_enables;
		td->notify_enables = ((old & ~mask) | (val & mask)) & 1;
		break;
	default:
		return TDX_E_FIELD_ID;
	}
	REG(vcpu, R8) = old;
	return 0;
}

u64 tdxe_sys_rd(struct kvm_vcpu *vcpu)
{
	u64 id = REG(vcpu, RDX), val;

	REG(vcpu, RDX) = FLD_NONE;
	REG(vcpu, R8) = 0;
	if (id == FLD_NONE) {
		REG(vcpu, RDX) = sys_fields[0];
		return TDX_E_FIRST_FIELD;
	}
	if (id & FLD_RESERVED)
		return TDX_E_FIELD_ID;
	switch (FLD(id)) {
	case FLD(0x0800000200000000ULL): val = 0x8086; break;	/* VENDOR_ID */
	case FLD(0x0800000100000003ULL): val = 5; break;	/* MINOR_VERSION */
	case FLD(0x0800000100000004ULL): val = 1; break;	/* MAJOR_VERSION */
	case FLD(0x0A00000300000008ULL): val = 0; break;	/* TDX_FEATURES0 */
	default:
		return TDX_E_FIELD_ID;
	}
	REG(vcpu, R8) = val;
	REG(vcpu, RDX) = next_field(sys_fields, ARRAY_SIZE(sys_fields), id);
	return 0;
}
