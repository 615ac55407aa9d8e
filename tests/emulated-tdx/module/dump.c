// SPDX-License-Identifier: GPL-2.0
/*
 * For whoever debugs a TD: the last exits of each vCPU, dumped when the TD dies, and
 * how the guest's own page tables translate an address.
 */
#include "tdxe.h"

static void show_exit(struct tdxe_exit_log *l, int id)
{
	pr_info("v%d exit %x rip %llx info %llx %llx rax %llx rcx %llx rdx %llx r11 %llx cr3 %llx intinfo %x\n",
		id, l->code, l->rip, l->info1, l->info2, l->rax, l->rcx, l->rdx, l->r11, l->cr3, l->intinfo);
}

/* Remember the last exits of each vCPU; dumped when a TD dies. */
void tdxe_record_exit(struct kvm_vcpu *vcpu)
{
	struct vmcb_control_area *c = &to_svm(vcpu)->vmcb->control;
	struct tdxe_vcpu *tv = to_tv(vcpu);
	struct tdxe_exit_log *l = &tv->log[tv->log_next++ % TDXE_LOG];

	*l = (struct tdxe_exit_log) { .code = c->exit_code, .rip = kvm_rip_read(vcpu),
		.info1 = c->exit_info_1, .info2 = c->exit_info_2, .rax = REG(vcpu, RAX),
		.rcx = REG(vcpu, RCX), .rdx = REG(vcpu, RDX), .r11 = REG(vcpu, R11),
		.cr3 = to_svm(vcpu)->vmcb->save.cr3, .intinfo = c->exit_int_info };
	if (unlikely(tdxe_take_one(&tdxe.trace)))
		show_exit(l, vcpu->vcpu_id);
}

void tdxe_dump(struct kvm_vcpu *vcpu)
{
	struct vmcb_save_area *s = &to_svm(vcpu)->vmcb->save;
	struct tdxe_vcpu *tv = to_tv(vcpu);
	int i;

	for (i = tv->log_next < TDXE_LOG ? TDXE_LOG - tv->log_next : 0; i < TDXE_LOG; i++)
		show_exit(&tv->log[(tv->log_next + i) % TDXE_LOG], vcpu->vcpu_id);
	pr_info("cr0 %llx cr2 %llx cr3 %llx cr4 %llx efer %llx cs %x/%llx rsp %lx idt %llx/%x\n",
		s->cr0, s->cr2, s->cr3, s->cr4, s->efer, s->cs.selector, s->cs.base,
		REG(vcpu, RSP), s->idtr.base, s->idtr.limit);
}

/* How the guest's own tables translate @va (for a dump). */
void tdxe_dump_walk(struct kvm_vcpu *vcpu, u64 va)
{
	u64 table = to_svm(vcpu)->vmcb->save.cr3 & GENMASK_ULL(47, 12), pte = 0;
	int level, r;

	for (level = kvm_is_cr4_bit_set(vcpu, X86_CR4_LA57) ? 5 : 4; level; level--) {
		r = tdxe_gpa_rw(vcpu->kvm, table + ((va >> (3 + 9 * level)) & 511) * 8, &pte, 8, false);
		pr_info("walk %llx level %d table %llx sept %llx: %d entry %llx\n", va, level,
			table, tdxe_sept_raw(vcpu->kvm, gpa_to_gfn(table)), r, pte);
		if (r || !(pte & 1) || (level <= 3 && (pte & BIT(7))))
			break;
		table = pte & GENMASK_ULL(47, 12);
	}
	pr_info("walk ends at sept %llx\n", tdxe_sept_raw(vcpu->kvm, gpa_to_gfn(pte & GENMASK_ULL(47, 12))));
}
