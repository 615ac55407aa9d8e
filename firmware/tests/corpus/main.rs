//! Replays the corpus of the fuzz targets: it reaches every way in which parsing can end, so the
//! fuzzer starts from all of them and loses none unseen; and no input takes memory beyond its bound.

#[cfg(test)]
#[path = "../../../tests/fuzz/src/firmware/mod.rs"]
#[expect(
    clippy::cast_possible_truncation,
    reason = "made for fuzz targets, which cut numbers on purpose"
)]
mod firmware;
#[cfg(test)]
mod heap;
#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers of synthetic files are small"
)]
mod memory;

/// The files of a target's corpus, by name.
#[cfg(test)]
fn corpus_of(target: &str) -> Vec<(String, Vec<u8>)> {
    use std::fs;

    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = here.join("../tests/fuzz/corpus").join(target);
    let files = fs::read_dir(folder).expect("the corpus is committed");
    let read = |file: fs::DirEntry| {
        let name = file.file_name().to_string_lossy().into_owned();
        (name, fs::read(file.path()).unwrap())
    };
    files.map(|file| read(file.unwrap())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arbitrary::Unstructured;
    use tdvmm_firmware::image::Image;
    use tdvmm_firmware::varstore::VariableStore;

    use super::corpus_of;
    use super::firmware::reasons::{IMAGE, STORE, of_image, of_store};
    use super::firmware::{image, store};

    /// The files of a target's corpus, made into inputs.
    fn replayed(
        target: &str,
        build: fn(&mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>>,
        end: fn(&[u8]) -> &'static str,
    ) -> BTreeSet<&'static str> {
        corpus_of(target)
            .into_iter()
            .filter_map(|(_, bytes)| {
                let input = build(&mut Unstructured::new(&bytes)).ok()?;
                Some(end(&input))
            })
            .collect()
    }

    #[test]
    fn corpus_of_images_reaches_every_refusal() {
        let reached = replayed("firmware_image", image::build, |file| {
            of_image(&Image::parse(file))
        });
        let all = IMAGE.iter().copied().collect();
        assert_eq!(reached, all, "missing: {:?}", &all - &reached);
    }

    #[test]
    fn corpus_of_variables_reaches_every_refusal() {
        let reached = replayed("firmware_variables", store::build, |file| {
            of_store(&VariableStore::parse(file))
        });
        let all = STORE.iter().copied().collect();
        assert_eq!(reached, all, "missing: {:?}", &all - &reached);
    }
}
