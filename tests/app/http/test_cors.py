from tests.app.fakes import image_file
from tests.app.running import Running, serving

ORIGIN = "https://page.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


def test_pages_of_other_origins_are_refused_by_default(running: Running) -> None:
    response = running.client.options("/predict", headers=PREFLIGHT)
    assert not [name for name in response.headers if name.startswith("access-control")]
    response = running.post(image_file(), headers={"Origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_pages_of_the_configured_origins_may_send_requests_with_a_key() -> None:
    with serving(cors_origins=(f"{ORIGIN}:443/",), api_keys=("key",)) as service:
        response = service.client.options("/predict", headers=PREFLIGHT)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "authorization" in response.headers["Access-Control-Allow-Headers"]
        response = service.post(image_file(), headers={"Origin": ORIGIN, "Authorization": "Bearer key"})
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
        refused = service.post(image_file(), headers={"Origin": ORIGIN})
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
        other = service.client.options("/predict", headers={**PREFLIGHT, "Origin": "https://other.example"})
        assert other.status_code == 400
        assert "Access-Control-Allow-Origin" not in other.headers


def test_an_internal_error_can_be_read_by_pages_of_other_origins() -> None:
    with serving(cors_origins=(ORIGIN,)) as service:
        service.engine.failure = RuntimeError("out of memory")
        response = service.post(image_file(), headers={"Origin": ORIGIN})
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (500, ORIGIN)
        assert response.headers["X-Request-ID"]
