//! Names of tests, and which of them somebody may have meant. Pure.

/// How many names are suggested.
const FEW: usize = 4;

/// The names in what a test program prints for `--list`.
pub fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_suffix(": test"))
}

/// What to say where no test that ran has `name` in its own.
pub fn unknown(name: &str, known: &[String]) -> String {
    let having: Vec<&str> = known
        .iter()
        .map(String::as_str)
        .filter(|k| k.contains(name))
        .take(FEW)
        .collect();
    if having.is_empty() {
        let near = nearest(name, known).join(", ");
        format!("no test of these lanes has `{name}` in its name; the nearest are: {near}")
    } else {
        let having = having.join(", ");
        format!(
            "no test of this tier has `{name}` in its name; give --full or a whole name for: {having}"
        )
    }
}

/// The names that come nearest, best first.
fn nearest<'a>(name: &str, known: &'a [String]) -> Vec<&'a str> {
    let mut ranked: Vec<(usize, usize, &str)> = known
        .iter()
        .map(|k| (distance(name, k), k.len().abs_diff(name.len()), k.as_str()))
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(FEW).map(|(.., k)| k).collect()
}

/// How many characters of `name` are to be changed, left out or added until it is a part of `whole`.
fn distance(name: &str, whole: &str) -> usize {
    let whole: Vec<char> = whole.chars().collect();
    // For each place in `whole` where a part can end; it may begin anywhere.
    let mut row = vec![0; whole.len() + 1];
    for (index, wanted) in name.chars().enumerate() {
        let mut next = vec![index + 1];
        for (at, found) in whole.iter().enumerate() {
            let change = row[at] + usize::from(wanted != *found);
            let one_more = row[at + 1].min(next[at]) + 1;
            next.push(change.min(one_more));
        }
        row = next;
    }
    row.into_iter().min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<String> {
        [
            "boot-2cpu",
            "boot-2cpu-6g",
            "td-kexec-twice",
            "disk-boot-td",
            "td-2cpu",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn distance_is_that_to_the_nearest_part() {
        assert_eq!(distance("kexec", "td-kexec-twice"), 0);
        assert_eq!(distance("kexek", "td-kexec-twice"), 1);
        assert_eq!(distance("kxec", "td-kexec-twice"), 1);
        assert_eq!(distance("abc", ""), 3);
    }

    #[test]
    fn typo_names_the_nearest_first() {
        let said = unknown("boot-2cqu", &known());
        assert!(said.contains("`boot-2cqu`"), "{said}");
        assert!(said.contains("are: boot-2cpu, boot-2cpu-6g, "), "{said}");
        assert!(!said.contains("kexec"), "{said}");
    }

    #[test]
    fn name_of_another_tier_is_not_called_a_typo() {
        let said = unknown("kexec", &known());
        assert!(
            said.contains("--full") && said.contains("td-kexec-twice"),
            "{said}"
        );
    }

    #[test]
    fn list_of_a_test_program_gives_names() {
        let text = "a::b: test\nsrc/x.rs - y (line 3): test\n\n2 tests, 0 benchmarks\n";
        let names: Vec<&str> = listed(text).collect();
        assert_eq!(names, ["a::b", "src/x.rs - y (line 3)"]);
    }
}
