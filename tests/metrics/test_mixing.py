from hypothesis import given
from hypothesis import strategies as st

from fl.metrics.languages import language_tags
from fl.metrics.mixing import mixing_indices

TAGS = st.lists(st.sampled_from(["ko", "en", "zh", None]), max_size=12)


def test_a_mixed_word_is_split_before_it_is_counted():
    assert language_tags("이번 bug는 고쳤어") == ["ko", "en", "ko", "ko"]
    assert mixing_indices(language_tags("이번 bug는 고쳤어")).switch_points == 2


def test_texts_without_a_language_have_no_mixing():
    for tags in ([], [None, None]):
        indices = mixing_indices(tags)
        assert (indices.cmi_2014, indices.cmi_2016, indices.i_index, indices.m_index) == (0, 0, 0, 0)


@given(TAGS)
def test_indices_stay_in_their_ranges(tags):
    indices = mixing_indices(tags)
    assert 0 <= indices.cmi_2014 < 100
    assert 0 <= indices.cmi_2016 < 100
    assert 0 <= indices.i_index <= 1
    assert 0 <= indices.m_index <= 1 + 1e-9


@given(TAGS)
def test_indices_do_not_depend_on_the_direction_or_the_names_of_the_languages(tags):
    renamed = [{"ko": "a", "en": "b", "zh": "c", None: None}[tag] for tag in tags]
    assert mixing_indices(tags) == mixing_indices(renamed)
    backwards = mixing_indices(tags[::-1])
    assert backwards.switch_points == mixing_indices(tags).switch_points
    assert backwards.cmi_2016 == mixing_indices(tags).cmi_2016
