// SPDX-License-Identifier: GPL-2.0
/*
 * Reading the guest's instructions. A TDX module is told an instruction's length by
 * VMX; SVM without NRIPS tells nothing, so the bytes are fetched and decoded here.
 */
#include "tdxe.h"

/*
 * Guest linear to physical, by the guest's own page tables (which are private
 * memory, so KVM's walker would read the wrong copy).
 */
static int gva_to_gpa(struct kvm_vcpu *vcpu, u64 va, u64 *gpa)
{
	u64 table, pte;
	int level;

	if (!is_paging(vcpu)) {
		*gpa = (u32)va;
		return 0;
	}
	if (!is_long_mode(vcpu))
		return -EOPNOTSUPP;
	table = to_svm(vcpu)->vmcb->save.cr3 & GENMASK_ULL(47, 12);
	for (level = kvm_is_cr4_bit_set(vcpu, X86_CR4_LA57) ? 5 : 4; level; level--) {
		int shift = 12 + 9 * (level - 1);

		if (tdxe_gpa_rw(vcpu->kvm, table + ((va >> shift) & 511) * 8, &pte, 8, false) ||
		    !(pte & 1))
			return -EFAULT;
		if (level == 1 || (level <= 3 && (pte & BIT(7)))) {
			u64 off = BIT_ULL(shift) - 1;

			*gpa = (pte & GENMASK_ULL(47, 12) & ~off) | (va & off);
			return 0;
		}
		table = pte & GENMASK_ULL(47, 12);
	}
	return -EFAULT;
}

/* Fetch up to @max instruction bytes at RIP; returns how many could be read. */
int tdxe_fetch(struct kvm_vcpu *vcpu, u8 *buf, int max)
{
	u64 va = to_svm(vcpu)->vmcb->save.rip, gpa;
	int done = 0;

	if (!is_64_bit_mode(vcpu))
		va = (u32)(va + to_svm(vcpu)->vmcb->save.cs.base);
	while (done < max) {
		int n = min_t(int, max - done, PAGE_SIZE - offset_in_page(va));

		if (gva_to_gpa(vcpu, va, &gpa) || tdxe_gpa_rw(vcpu->kvm, gpa, buf + done, n, false))
			break;
		done += n;
		va += n;
	}
	return done;
}

/* Length of those instructions that make a TD exit; no general decoder. */
void tdxe_decode(struct kvm_vcpu *vcpu, struct tdxe_insn *in)
{
	u8 *b = in->b;
	int i;

	memset(in, 0, sizeof(*in));
	in->n = tdxe_fetch(vcpu, b, INSN_MAX);
	for (i = 0; i < in->n; i++) {
		if (b[i] == 0xf2 || b[i] == 0xf3)
			in->rep = true;
		else if (b[i] != 0x66 && b[i] != 0x67 && b[i] != 0x2e && b[i] != 0x36 &&
			 b[i] != 0x3e && b[i] != 0x26 && b[i] != 0x64 && b[i] != 0x65)
			break;
	}
	if (is_64_bit_mode(vcpu) && i < in->n && (b[i] & 0xf0) == 0x40)
		in->rex = b[i++];
	in->op = i;
	if (i + 3 > in->n)
		memset(b + in->n, 0, sizeof(in->b) - in->n);
	switch (b[i]) {
	case 0xf4: case 0x6c ... 0x6f: case 0xec ... 0xef:
		in->len = i + 1;
		break;
	case 0xe4 ... 0xe7:
		in->imm = true;
		in->len = i + 2;
		break;
	case 0x90:
		in->len = i + 1;
		break;
	case 0x0f:
		switch (b[i + 1]) {
		case 0x01: case 0x20: case 0x22:
			in->len = i + 3;
			break;
		case 0x06: case 0x08: case 0x09: case 0x30 ... 0x34: case 0xa2:
			in->len = i + 2;
			break;
		}
		break;
	}
	if (in->len > in->n)
		in->len = 0;
}

void tdxe_advance(struct kvm_vcpu *vcpu, int len)
{
	kvm_rip_write(vcpu, kvm_rip_read(vcpu) + len);
	tdxe_svm.set_interrupt_shadow(vcpu, 0);
}

int tdxe_skip_insn(struct kvm_vcpu *vcpu)
{
	struct tdxe_insn in;

	if (!is_td_vcpu(vcpu))
		return tdxe_svm.skip_emulated_instruction(vcpu);
	tdxe_decode(vcpu, &in);
	if (!in.len) {
		pr_warn("cannot skip %*ph at %lx\n", 8, in.b, kvm_rip_read(vcpu));
		kvm_prepare_emulation_failure_exit(vcpu);
		return 0;
	}
	tdxe_advance(vcpu, in.len);
	return 1;
}
