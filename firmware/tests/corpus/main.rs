//! Replays the corpus of the fuzz targets: it reaches every way in which parsing can end, so the
//! fuzzer starts from all of them and loses none unseen.

#[cfg(test)]
#[path = "../../../tests/fuzz/src/firmware/mod.rs"]
#[expect(
    clippy::cast_possible_truncation,
    dead_code,
    reason = "made for fuzz targets, which cut numbers on purpose and use all of it"
)]
mod firmware;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use arbitrary::Unstructured;
    use tdvmm_firmware::image::Image;
    use tdvmm_firmware::varstore::VariableStore;

    use super::firmware::reasons::{IMAGE, STORE, of_image, of_store};
    use super::firmware::{image, store};

    /// The files of a target's corpus, made into inputs.
    fn replayed(
        target: &str,
        build: fn(&mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>>,
        end: fn(&[u8]) -> &'static str,
    ) -> BTreeSet<&'static str> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let files = fs::read_dir(corpus.join(target)).expect("the corpus is committed");
        files
            .filter_map(|entry| {
                let bytes = fs::read(entry.unwrap().path()).unwrap();
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
