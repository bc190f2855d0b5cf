from model import ModelCard
from tests.app.fakes import CARD
from tests.app.running import Running


def test_the_complete_card_is_served(running: Running) -> None:
    response = running.client.get("/model")
    assert response.status_code == 200
    assert response.json() == CARD.model_dump(mode="json")


def test_the_served_card_is_valid(running: Running) -> None:
    assert ModelCard.model_validate_json(running.client.get("/model").text) == CARD
