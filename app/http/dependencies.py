"""What routes take from the application."""

from fastapi import Request

from app.serving.service import Service


async def service_of(request: Request) -> Service:
    """The service of the application. A coroutine, because FastAPI runs a plain function in a thread."""
    service: Service = request.app.state.service
    return service
