from tests.app.fakes import picture
from tests.app.running import Running, serving

ORIGIN = "https://page.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


def test_pages_from_elsewhere_may_not_call_unless_a_setting_says_so(running: Running) -> None:
    assert running.client.options("/predict", headers=PREFLIGHT).status_code == 405
    answer = running.post(picture(), headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_from_the_origins_of_the_setting_may_call_with_a_key() -> None:
    with serving(cors_origins=(ORIGIN,), api_keys=("key",)) as service:
        answer = service.client.options("/predict", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
        answer = service.post(picture(), headers={"Origin": ORIGIN, "Authorization": "Bearer key"})
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        refused = service.post(picture(), headers={"Origin": ORIGIN})
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
        other = service.client.options("/predict", headers={**PREFLIGHT, "Origin": "https://other.example"})
        assert other.status_code == 400
        assert "Access-Control-Allow-Origin" not in other.headers


def test_an_internal_error_can_be_read_by_pages_of_other_origins() -> None:
    with serving(cors_origins=(ORIGIN,)) as service:
        service.engine.failure = RuntimeError("out of memory")
        response = service.post(picture(), headers={"Origin": ORIGIN})
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (500, ORIGIN)
        assert response.headers["X-Request-ID"]
