from model import ModelCard
from tests.app.fakes import CARD
from tests.app.running import Running


def test_the_card_is_served_whole(running: Running) -> None:
    answer = running.client.get("/model")
    assert answer.status_code == 200
    assert answer.json() == CARD.model_dump(mode="json")


def test_what_is_served_is_a_valid_card_again(running: Running) -> None:
    assert ModelCard.model_validate_json(running.client.get("/model").text) == CARD
