"""Finding a model in a folder of this machine."""

import pytest
from asked import refusal

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": ""}, "holds no usable model.safetensors"),
        ({"model.safetensors": ""}, "holds no usable config.json"),
        ({"a.gguf": ""}, "model.path={folder}/a.gguf"),
        ({"adapter_config.json": ""}, "adapter={folder}"),
        ({"config.json": "", "model.safetensors.index.json": "{"}, "no usable model.safetensors.index.json"),
        (
            {"config.json": "", "model.safetensors.index.json": '{"weight_map": {"a": "2.safetensors"}}'},
            "holds no usable 2.safetensors",
        ),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert said.format(folder=tmp_path) in refusal(str(tmp_path))


@pytest.mark.parametrize(
    "path", ["./models/tiny", "/nowhere/at/all", "a/b/c", "models/tiny.gguf", "~/no-such"]
)
def test_a_path_that_is_not_there_is_never_looked_up(path, no_network):
    assert f"there is no {path}" in refusal(path)


def test_a_mistyped_file_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "model-q8.gguf").touch()
    assert "did you mean 'model-q8.gguf'?" in refusal(str(tmp_path / "model_q8.gguf"))
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in refusal(str(tmp_path / "model.safetensors"))
