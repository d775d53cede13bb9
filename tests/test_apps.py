"""The explorer and the 2-D lab as a notebook shows them. tests/site works them in a browser."""

import pytest

from diffusion_lib import widgets
from diffusion_lib.errors import UserError


@pytest.mark.parametrize(
    ("make", "app"), [(widgets.forward_explorer, "explorer"), (widgets.mixture_lab, "lab")]
)
def test_two_faces(make, app):
    data = make(t=250)._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in data
    page = data["text/html"]
    assert f'<div class="dl-app" data-app="{app}" data-t="250"' in page
    assert len(page) < 1000 and "<script" not in page  # the site brings its own copy


def test_refuses_what_the_apps_do_not_have():
    with pytest.raises(UserError, match="0 to 1000"):
        widgets.forward_explorer(t=1001)
    with pytest.raises(UserError, match="0 to 1000"):
        widgets.mixture_lab(t=-1)
    with pytest.raises(UserError, match="flow"):
        widgets.forward_explorer(schedule="flow")
