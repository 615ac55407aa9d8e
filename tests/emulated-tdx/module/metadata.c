// SPDX-License-Identifier: GPL-2.0
/*
 * Metadata that a guest can read and write: TDG.VM.RD, TDG.VM.WR, TDG.SYS.RD.
 * Departs: a handful of fields; the module has hundreds.
 */
#include "tdxe.h"

/*
 * Field ids, checked against the module's include/auto_gen/tdr_tdcs_fields_lookup.h and
 * global_sys_fields_lookup.h (1.5.01, commit 72d8cff); TOPOLOGY_ENUM_CONFIGURED is newer
 * and from Linux (TDCS_TOPOLOGY_ENUM_CONFIGURED in arch/x86/include/asm/shared/tdx.h).
 */
#define MD_ATTRIBUTES		0x1110000300000000ULL
#define MD_XFAM			0x1110000300000001ULL
#define MD_NOTIFY_ENABLES	0x9110000300000010ULL
#define MD_CONFIG_FLAGS		0x1110000300000016ULL
#define MD_TD_CTLS		0x1110000300000017ULL
#define MD_TOPOLOGY		0x9100000000000019ULL
#define MD_SYS_VENDOR_ID	0x0800000200000000ULL
#define MD_SYS_MINOR_VERSION	0x0800000100000003ULL
#define MD_SYS_MAJOR_VERSION	0x0800000100000004ULL
#define MD_SYS_FEATURES0	0x0A00000300000008ULL

/* Class and field code; the module ignores the rest of an id, reserved bits aside. */
#define FLD(id)		((id) & (GENMASK_ULL(61, 56) | GENMASK_ULL(23, 0)))
#define FLD_RESERVED	(GENMASK_ULL(31, 24) | GENMASK_ULL(49, 47) | BIT_ULL(55) | BIT_ULL(62))
/* "From the first field", and "there is no next one". */
#define FLD_NONE	~0ULL

/* In the order in which a walk finds them. */
static const u64 td_fields[] = {
	MD_ATTRIBUTES, MD_XFAM, MD_NOTIFY_ENABLES, MD_CONFIG_FLAGS, MD_TD_CTLS, MD_TOPOLOGY,
};

static const u64 sys_fields[] = {
	MD_SYS_VENDOR_ID, MD_SYS_MINOR_VERSION, MD_SYS_MAJOR_VERSION, MD_SYS_FEATURES0,
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
	case FLD(MD_CONFIG_FLAGS):	val = BIT(2); break;		/* NO_RBP_MOD */
	case FLD(MD_TD_CTLS):		val = td->td_ctls; break;
	case FLD(MD_NOTIFY_ENABLES):		val = td->notify_enables; break;
	case FLD(MD_TOPOLOGY):	val = 1; break;
	case FLD(MD_ATTRIBUTES):	val = td->attributes; break;
	case FLD(MD_XFAM):		val = td->xfam; break;
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
	case FLD(MD_TD_CTLS):
		/* ENUM_TOPOLOGY only; no FLEXIBLE_PENDING_VE, no REDUCE_VE. */
		old = td->td_ctls;
		if ((val ^ old) & mask & ~TDXE_CTL_TOPOLOGY)
			return TDX_E_FIELD_VALUE;
		td->td_ctls = (old & ~mask) | (val & mask);
		break;
	case FLD(MD_NOTIFY_ENABLES):
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
	case FLD(MD_SYS_VENDOR_ID): val = 0x8086; break;
	case FLD(MD_SYS_MINOR_VERSION): val = 5; break;
	case FLD(MD_SYS_MAJOR_VERSION): val = 1; break;
	case FLD(MD_SYS_FEATURES0): val = 0; break;
	default:
		return TDX_E_FIELD_ID;
	}
	REG(vcpu, R8) = val;
	REG(vcpu, RDX) = next_field(sys_fields, ARRAY_SIZE(sys_fields), id);
	return 0;
}
