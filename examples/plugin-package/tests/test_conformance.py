from dgharness.testing import check_algorithm
from dgharness_example.logit_decay import logit_decay


def test_logit_decay_keeps_the_contract():
    check_algorithm(logit_decay)
