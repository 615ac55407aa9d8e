// SPDX-License-Identifier: GPL-2.0
/*
 * MSRs. Two lists: what the guest's RDMSR and WRMSR do (the module's MSR table), and
 * what KVM emulates when the guest asks by TDVMCALL or user space by ioctl.
 * Departs: SPEC_CTRL, PRED_CMD, FLUSH_CMD, DEBUGCTL, DS_AREA and UARCH_MISC_CTL have no effect;
 * MISC_PACKAGE_CTLS, DEBUG_INTERFACE and the VMX capabilities read as 0.
 */
#include "tdxe.h"

/* MSRs that KVM emulates for a TD on TDVMCALL; all others are refused. */
bool tdxe_has_emulated_msr(u32 index)
{
	switch (index) {
	case MSR_IA32_UCODE_REV: case MSR_IA32_ARCH_CAPABILITIES:
	case MSR_IA32_POWER_CTL: case MSR_IA32_CR_PAT: case MSR_MTRRcap:
	case 0x200 ... 0x26f: case MSR_MTRRdefType:
	case MSR_IA32_TSC_DEADLINE: case MSR_IA32_MISC_ENABLE:
	case MSR_PLATFORM_INFO: case MSR_MISC_FEATURES_ENABLES:
	case MSR_IA32_APICBASE: case MSR_EFER: case MSR_IA32_FEAT_CTL:
	case MSR_IA32_MCG_CAP ... MSR_IA32_MCG_CTL: case MSR_IA32_MCG_EXT_CTL:
	case MSR_IA32_MC0_CTL ... MSR_IA32_MCx_CTL(KVM_MAX_MCE_BANKS) - 1:
	case MSR_IA32_MC0_CTL2 ... MSR_IA32_MCx_CTL2(KVM_MAX_MCE_BANKS) - 1:
	case MSR_KVM_POLL_CONTROL:
	/* x2APIC registers outside of the virtual APIC page's accelerated set. */
	case 0x802: case 0x803: case 0x80d: case 0x80f: case 0x828: case 0x82f:
	case 0x830: case 0x832 ... 0x839: case 0x83e:
		return true;
	}
	return false;
}

/* KVM: tdx_is_read_only_msr() */
bool tdxe_is_read_only_msr(u32 index)
{
	return index == MSR_IA32_APICBASE || index == MSR_EFER || index == MSR_IA32_FEAT_CTL;
}

/*
 * What a TD's RDMSR and WRMSR do (module: msr_config_lookup.c). MSRs that are not
 * listed are #VE. Features that no TD has here (performance monitoring, PT, CET, PKS,
 * user interrupts, LBR, XFD, TSX, UMWAIT) make their MSRs #GP.
 */
#define V RULE_VE
#define G RULE_GP
#define N RULE_NATIVE
#define Z RULE_ZERO
#define E RULE_HERE
#define C RULE_CPUID
#define T RULE_TOPOLOGY

static const struct {
	u32 first, last;
	u8 rd, wr;
} msr_rules[] = {
	{ 0x10, 0x10, N, V },			/* TSC */
	{ MSR_IA32_SPEC_CTRL, MSR_IA32_SPEC_CTRL, E, E },
	{ MSR_IA32_PRED_CMD, MSR_IA32_PRED_CMD, G, E },
	{ 0x87, 0x87, C, C },			/* MKTME partitioning */
	{ 0x8c, 0x8f, G, G }, { 0x98, 0x9b, G, G }, { 0x9e, 0x9e, G, G },
	{ 0xbc, 0xbc, Z, V },			/* MISC_PACKAGE_CTLS */
	{ 0xbd, 0xbd, E, G },			/* XAPIC_DISABLE_STATUS */
	{ 0xc1, 0xc8, G, G }, { 0xe1, 0xe1, G, G },
	{ MSR_IA32_ARCH_CAPABILITIES, MSR_IA32_ARCH_CAPABILITIES, E, G },
	{ MSR_IA32_FLUSH_CMD, MSR_IA32_FLUSH_CMD, G, E },
	{ 0x122, 0x122, G, G },
	{ MSR_IA32_SYSENTER_CS, MSR_IA32_SYSENTER_EIP, N, N },
	{ 0x186, 0x18d, G, G }, { 0x195, 0x195, G, G },
	{ MSR_IA32_MISC_ENABLE, MSR_IA32_MISC_ENABLE, E, V },
	{ 0x1a6, 0x1a7, G, G }, { 0x1c4, 0x1c5, G, G },
	{ MSR_IA32_DEBUGCTLMSR, MSR_IA32_DEBUGCTLMSR, E, E },
	{ 0x1f8, 0x1fa, C, C },			/* DCA */
	{ 0x276, 0x276, G, G },
	{ MSR_IA32_CR_PAT, MSR_IA32_CR_PAT, N, N },
	{ 0x309, 0x310, G, G }, { 0x329, 0x329, G, G },
	{ 0x345, 0x345, Z, G },			/* PERF_CAPABILITIES */
	{ 0x38d, 0x392, G, G }, { 0x3f1, 0x3f2, G, G }, { 0x3f6, 0x3f7, G, G },
	/* VMX capabilities: the TRUE and fixed-bit ones are readable (0 here). */
	{ 0x480, 0x480, Z, G }, { 0x481, 0x484, V, G }, { 0x485, 0x489, Z, G },
	{ 0x48a, 0x48a, V, G }, { 0x48b, 0x492, Z, G },
	{ 0x4c1, 0x4c8, G, G }, { 0x500, 0x500, G, G },
	{ 0x560, 0x561, G, G }, { 0x570, 0x572, G, G }, { 0x580, 0x587, G, G },
	{ MSR_IA32_DS_AREA, MSR_IA32_DS_AREA, E, E },
	{ 0x6a0, 0x6a0, G, G }, { 0x6a2, 0x6a2, G, G }, { 0x6a4, 0x6a8, G, G },
	{ MSR_IA32_TSC_DEADLINE, MSR_IA32_TSC_DEADLINE, C, C },
	{ 0x6e1, 0x6e1, G, G },
	/* x2APIC: what the virtual-APIC page holds is readable, the rest #VE. */
	{ 0x800, 0x801, G, G }, { 0x802, 0x802, T, T }, { 0x804, 0x807, G, G },
	{ 0x808, 0x808, N, N },
	{ 0x809, 0x809, Z, N }, { 0x80a, 0x80a, N, N }, { 0x80b, 0x80c, Z, N },
	{ 0x80e, 0x80e, Z, N }, { 0x810, 0x827, N, N }, { 0x829, 0x82e, G, G },
	{ 0x831, 0x831, G, G }, { 0x83f, 0x83f, Z, N }, { 0x840, 0x8ff, G, G },
	{ 0x981, 0x984, C, C },			/* TME */
	{ 0x985, 0x98a, G, G },
	{ 0xc80, 0xc80, Z, V },			/* DEBUG_INTERFACE */
	{ 0xd90, 0xd90, G, G }, { 0xd93, 0xd93, G, G },
	{ MSR_IA32_XSS, MSR_IA32_XSS, E, E },
	{ 0x1200, 0x12ff, G, G }, { 0x14ce, 0x14cf, G, G }, { 0x1500, 0x16ff, G, G },
	{ 0x1b01, 0x1b01, E, E },		/* UARCH_MISC_CTL */
	{ MSR_EFER, MSR_EFER, N, E },
	{ MSR_STAR, MSR_LSTAR, N, N }, { MSR_SYSCALL_MASK, MSR_SYSCALL_MASK, N, N },
	{ MSR_FS_BASE, MSR_TSC_AUX, N, N },
};

#undef V
#undef G
#undef N
#undef Z
#undef E
#undef C
#undef T

static int msr_rule(u32 index, bool write)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(msr_rules); i++)
		if (index >= msr_rules[i].first && index <= msr_rules[i].last)
			return write ? msr_rules[i].wr : msr_rules[i].rd;
	return RULE_VE;
}

static int cpuid_msr(struct kvm_vcpu *vcpu, u32 index)
{
	u32 r[4] = {};
	bool on;

	tdxe_cpuid_lookup(vcpu, index == 0x87 || index >= 0x981 ? 7 : 1, 0, r);
	switch (index) {
	case 0x87:		on = r[3] & BIT(18); break;	/* PCONFIG */
	case 0x1f8 ... 0x1fa:	on = r[2] & BIT(18); break;	/* DCA */
	case 0x6e0:		on = r[2] & BIT(24); break;	/* TSC deadline */
	default:		on = r[2] & BIT(13);		/* TME */
	}
	return on ? RULE_VE : RULE_GP;
}

/* Returns N when done, or V, G. */
static int emulated_msr(struct kvm_vcpu *vcpu, u32 index, bool write, u64 *val)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);
	u64 *store = NULL, reserved = 0, diff;

	switch (index) {
	case MSR_IA32_SPEC_CTRL:
		store = &tv->spec_ctrl;
		reserved = ~0x4ffULL;
		break;
	case MSR_IA32_PRED_CMD: case MSR_IA32_FLUSH_CMD:
		return *val & ~1ULL ? RULE_GP : RULE_NATIVE;
	case MSR_IA32_DEBUGCTLMSR:
		if (write && (*val & 0xc0) == 0x40)
			return RULE_VE;
		if (write)
			*val &= ~BIT_ULL(13);
		store = &tv->debugctl;
		reserved = ~0xffc7ULL;
		break;
	case MSR_IA32_DS_AREA:
		if (write && is_noncanonical_msr_address(*val, vcpu))
			return RULE_GP;
		store = &tv->ds_area;
		break;
	case MSR_IA32_XSS:			/* no supervisor state in any XFAM here */
		store = &tv->xss;
		reserved = ~0ULL;
		break;
	case 0x1b01:
		store = &tv->uarch_misc;
		reserved = ~1ULL;
		break;
	case MSR_EFER:				/* SCE is all that a TD can change */
		diff = (*val ^ vcpu->arch.efer) & ~(u64)EFER_LMA;
		return diff & ~(u64)EFER_SCE ? RULE_VE : kvm_emulate_msr_write(vcpu, index, *val) ? RULE_GP : RULE_NATIVE;
	case 0xbd:				/* only x2APIC mode */
		*val = 1;
		return RULE_NATIVE;
	case MSR_IA32_ARCH_CAPABILITIES:
		*val = ARCH_CAP_RDCL_NO | ARCH_CAP_IBRS_ALL | ARCH_CAP_SKIP_VMENTRY_L1DFLUSH |
		       ARCH_CAP_SSB_NO | ARCH_CAP_MDS_NO | ARCH_CAP_PSCHANGE_MC_NO |
		       ARCH_CAP_TAA_NO | BIT(12) | ARCH_CAP_SBDR_SSDP_NO | ARCH_CAP_FBSDP_NO |
		       ARCH_CAP_PSDP_NO | ARCH_CAP_PBRSB_NO | ARCH_CAP_GDS_NO |
		       ARCH_CAP_RFDS_NO | ARCH_CAP_ITS_NO;
		return RULE_NATIVE;
	case MSR_IA32_MISC_ENABLE:	/* read by verify_cpu before any #VE handler */
		*val = MSR_IA32_MISC_ENABLE_FAST_STRING | MSR_IA32_MISC_ENABLE_BTS_UNAVAIL |
		       MSR_IA32_MISC_ENABLE_PEBS_UNAVAIL;
		return RULE_NATIVE;
	}
	if (WARN_ON_ONCE(!store))
		return RULE_VE;
	if (!write)
		*val = *store;
	else if (*val & reserved)
		return RULE_GP;
	else
		*store = *val;
	return RULE_NATIVE;
}

int tdxe_handle_msr(struct kvm_vcpu *vcpu, bool write)
{
	u32 index = REG(vcpu, RCX);
	u64 val = (u32)REG(vcpu, RAX) | REG(vcpu, RDX) << 32;
	int rule = msr_rule(index, write);

	if (rule == RULE_CPUID)
		rule = cpuid_msr(vcpu, index);
	else if (rule == RULE_TOPOLOGY)
		rule = !(to_td(vcpu->kvm)->td_ctls & TDXE_CTL_TOPOLOGY) ? RULE_VE : write ? RULE_GP : RULE_NATIVE;
	if (rule == RULE_NATIVE || (rule == RULE_VE && !tdxe.strict_ve))
		return write ? kvm_emulate_wrmsr(vcpu) : kvm_emulate_rdmsr(vcpu);
	if (rule == RULE_ZERO) {
		val = 0;
		rule = RULE_NATIVE;
	} else if (rule == RULE_HERE) {
		rule = emulated_msr(vcpu, index, write, &val);
	}
	if (rule == RULE_VE)
		return tdxe_ve_insn(vcpu, write ? R_WRMSR : R_RDMSR);
	if (rule == RULE_GP) {
		kvm_inject_gp(vcpu, 0);
		return 1;
	}
	if (!write) {
		REG(vcpu, RAX) = (u32)val;
		REG(vcpu, RDX) = val >> 32;
	}
	return tdxe_skip_insn(vcpu);
}
